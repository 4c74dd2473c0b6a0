use super::{
    super::consul::{Consul, ConsulSettings},
    addresses,
    fake::{Fake, answer},
    next, run,
};
use std::{fs, time::Duration};

/// As Consul 1.19 sends it, shortened.
fn instances(ports: &[u16]) -> String {
    let one = |port: &u16| {
        format!(
            r#"{{"Node":{{"ID":"5e2","Node":"n1","Address":"10.0.0.9","Datacenter":"dc1"}},
                "Service":{{"ID":"db-{port}","Service":"db","Tags":["v1"],"Address":"10.0.0.1",
                "Port":{port},"Weights":{{"Passing":1,"Warning":1}}}},
                "Checks":[{{"Node":"n1","CheckID":"serfHealth","Status":"passing","Output":""}}]}}"#
        )
    };
    let all: Vec<String> = ports.iter().map(one).collect();
    format!("[{}]", all.join(","))
}

#[test]
fn an_index_is_waited_for_and_may_go_back() {
    let path = std::env::temp_dir().join(format!("tembuku-consul-{}", std::process::id()));
    fs::write(&path, "first\n").expect("writable");
    let server = Fake::start({
        let path = path.clone();
        move |number, request, stream| {
            let (index, leader, body, token) = match number {
                0 => ("5", "true", instances(&[1]), "first"),
                1 => ("7", "true", instances(&[1, 2]), "second"),
                2 => ("3", "true", instances(&[2]), "second"),
                3 => ("4", "false", "[]".to_owned(), "second"),
                4 => ("0", "true", instances(&[1]), "second"),
                _ => ("9", "true", "[]".to_owned(), "second"),
            };
            let field = format!("\r\nx-consul-token: {token}\r\n");
            assert!(request.head.contains(&field), "{}", request.head);
            fs::write(&path, "second\n").expect("writable");
            let fields = format!(
                "X-Consul-Index: {index}\r\nX-Consul-KnownLeader: {leader}\r\n\
                 X-Consul-LastContact: 0\r\n"
            );
            answer(stream, "200 OK", &fields, &body);
        }
    });
    let mut source = Consul::new(ConsulSettings {
        url: server.url(),
        service: "my db".to_owned(),
        tag: Some("v1".to_owned()),
        datacenter: Some("dc1".to_owned()),
        token_file: Some(path.clone()),
        use_health: true,
        tls_ca: None,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(5),
    });
    run(async {
        assert_eq!(addresses(&mut source).await, "10.0.0.1:1");
        assert_eq!(addresses(&mut source).await, "10.0.0.1:1 10.0.0.1:2");
        assert_eq!(addresses(&mut source).await, "10.0.0.1:2");
        let error = next(&mut source).await.expect_err("no leader");
        assert!(error.contains("have no leader"), "{error}");
        let error = next(&mut source).await.expect_err("no index");
        assert!(error.contains("no field X-Consul-Index"), "{error}");
        let last = next(&mut source).await.expect("an answer");
        assert_eq!((last.backends.len(), &last.version[..]), (0, "index 9"));
    });
    let requests = server.requests();
    let plain = "GET /v1/health/service/my%20db?tag=v1&dc=dc1";
    let expected = [
        (0, None),
        (1, Some("&index=5&wait=")),
        (2, Some("&index=7&wait=")),
        // It went back, and then there were errors: nothing is waited for.
        (3, None),
        (4, None),
        (5, None),
    ];
    for (number, more) in expected {
        let request = &requests[number];
        match more {
            None => assert_eq!(request, plain),
            Some(more) => assert!(request.starts_with(&format!("{plain}{more}")), "{request}"),
        }
    }
    fs::remove_file(path).expect("there");
}
