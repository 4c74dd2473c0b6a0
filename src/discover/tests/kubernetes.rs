use super::{
    super::kubernetes::{Kubernetes, KubernetesSettings},
    addresses,
    fake::{Fake, answer, begin_stream, chunk, end_stream, hang},
    next, run, wait_for,
};
use std::{fs, time::Duration};

/// One slice with an endpoint that has these conditions.
fn slice(name: &str, version: u32, ip: &str, conditions: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"n","resourceVersion":"{version}"}},
            "addressType":"IPv4",
            "endpoints":[{{"addresses":["{ip}"],"conditions":{{{conditions}}}}}],
            "ports":[{{"name":"sql","protocol":"TCP","port":5432}}]}}"#
    )
    .replace('\n', "")
}

fn list(version: u32, slices: &[String]) -> String {
    format!(
        r#"{{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1",
            "metadata":{{"resourceVersion":"{version}"}},"items":[{}]}}"#,
        slices.join(",")
    )
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn settings(url: String) -> KubernetesSettings {
    KubernetesSettings {
        namespace: "n".to_owned(),
        service: "s".to_owned(),
        port: Some("sql".to_owned()),
        url: Some(url),
        token_file: None,
        tls_ca: None,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(5),
    }
}

const GONE: &str = concat!(
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
    r#""message":"too old resource version: 12 (99)","reason":"Expired","code":410}"#
);
const DRAINS: &str = r#""ready":false,"serving":true,"terminating":true"#;

#[test]
fn a_watch_is_followed_resumed_and_begun_again() {
    let server = Fake::start(|number, request, stream| {
        let is_watch = request.line.contains("&watch=true");
        let at = |version: &str| {
            request
                .line
                .contains(&format!("&resourceVersion={version}&"))
        };
        match number {
            0 if !is_watch => {
                let slices = [slice("a", 9, "10.0.0.1", ""), slice("b", 9, "10.0.0.2", "")];
                answer(stream, "200 OK", "", &list(10, &slices));
            }
            1 if at("10") => {
                begin_stream(stream);
                let changed = event("MODIFIED", &slice("a", 11, "10.0.0.1", DRAINS));
                // In two pieces, and the beginning of another that never ends.
                let (one, two) = changed.split_at(40);
                chunk(stream, one);
                chunk(stream, two);
                chunk(
                    stream,
                    &event("BOOKMARK", r#"{"metadata":{"resourceVersion":"12"}}"#),
                );
                chunk(
                    stream,
                    &event("DELETED", &slice("b", 13, "10.0.0.2", ""))[..50],
                );
            }
            2 if at("12") => {
                begin_stream(stream);
                chunk(stream, &event("DELETED", &slice("b", 13, "10.0.0.2", "")));
                end_stream(stream);
            }
            3 if at("13") => {
                begin_stream(stream);
                chunk(stream, &event("ERROR", GONE));
                hang(stream);
            }
            4 if !is_watch => answer(stream, "200 OK", "", &list(99, &[])),
            5 if at("99") => answer(stream, "410 Gone", "", GONE),
            _ => answer(
                stream,
                "403 Forbidden",
                "",
                r#"{"kind":"Status","message":"endpointslices is forbidden","code":403}"#,
            ),
        }
    });
    run(async {
        let mut source = Kubernetes::new(settings(server.url()));
        assert_eq!(addresses(&mut source).await, "10.0.0.1:5432 10.0.0.2:5432");
        assert_eq!(addresses(&mut source).await, "-10.0.0.1:5432 10.0.0.2:5432");
        assert_eq!(addresses(&mut source).await, "-10.0.0.1:5432");
        let error = next(&mut source)
            .await
            .expect_err("410 for its own version");
        assert!(error.contains("status 410: too old"), "{error}");
        let error = next(&mut source).await.expect_err("forbidden");
        assert!(error.contains("a role with get, list and watch"), "{error}");
    });
    let first = "GET /apis/discovery.k8s.io/v1/namespaces/n/endpointslices\
                 ?labelSelector=kubernetes.io%2Fservice-name%3Ds";
    assert_eq!(server.requests()[0], first);
}

#[test]
fn silence_is_checked() {
    let server = Fake::start(|number, request, stream| {
        let is_watch = request.line.contains("&watch=true");
        match number {
            0 => answer(
                stream,
                "200 OK",
                "",
                &list(10, &[slice("a", 9, "10.0.0.1", "")]),
            ),
            // The watch has missed something.
            2 if request
                .line
                .ends_with("&resourceVersion=10&resourceVersionMatch=NotOlderThan") =>
            {
                answer(
                    stream,
                    "200 OK",
                    "",
                    &list(20, &[slice("a", 19, "10.0.0.2", "")]),
                );
            }
            4 if !is_watch => answer(
                stream,
                "200 OK",
                "",
                &list(30, &[slice("a", 19, "10.0.0.2", "")]),
            ),
            _ if is_watch => {
                begin_stream(stream);
                hang(stream);
            }
            _ => hang(stream),
        }
    });
    run(async {
        let mut source = Kubernetes::new(settings(server.url()));
        source.check_every = Duration::from_millis(100);
        source.timeout = Duration::from_millis(1500);
        assert_eq!(addresses(&mut source).await, "10.0.0.1:5432");
        assert_eq!(addresses(&mut source).await, "10.0.0.2:5432");
        let same = next(&mut source).await.expect("the same");
        assert_eq!(same.version, "resourceVersion 30");
        let error = next(&mut source).await.expect_err("it hangs");
        assert!(error.contains("no response within 1.5s"), "{error}");
    });
    let watches = server
        .requests()
        .iter()
        .filter(|r| r.contains("watch=true"))
        .count();
    assert_eq!(watches, 2);
}

#[test]
fn a_token_is_read_again() {
    let path = std::env::temp_dir().join(format!("tembuku-kubernetes-{}", std::process::id()));
    fs::write(&path, "first").expect("writable");
    let server = Fake::start({
        let path = path.clone();
        move |_, request, stream| {
            if request
                .head
                .contains("\r\nauthorization: bearer second\r\n")
            {
                match request.line.contains("&watch=true") {
                    true => {
                        begin_stream(stream);
                        hang(stream);
                    }
                    false => answer(stream, "200 OK", "", &list(1, &[])),
                }
            } else {
                fs::write(&path, "second").expect("writable");
                answer(
                    stream,
                    "401 Unauthorized",
                    "",
                    r#"{"kind":"Status","message":"Unauthorized","code":401}"#,
                );
            }
        }
    });
    run(async {
        let mut source = Kubernetes::new(KubernetesSettings {
            token_file: Some(path.clone()),
            ..settings(server.url())
        });
        let error = next(&mut source).await.expect_err("refused");
        assert!(error.contains("status 401: Unauthorized"), "{error}");
        wait_for(&mut source, "").await;
        fs::remove_file(&path).expect("there");
        let mut other = Kubernetes::new(KubernetesSettings {
            token_file: Some(path),
            ..settings(server.url())
        });
        let error = next(&mut other).await.expect_err("no file");
        assert!(error.contains("cannot read the token file"), "{error}");
    });
}
