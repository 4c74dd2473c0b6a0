//! Stand-ins for an API server of Kubernetes and for an agent of Consul: they speak as recorded,
//! and can be as awkward as those.

use super::server::Server;
use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// The path with the query, and the whole head.
fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split_whitespace().nth(1)?.to_owned();
    Some((path, head))
}

fn parameter(path: &str, key: &str) -> Option<String> {
    let query = path.split_once('?')?.1;
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut values = pairs
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value);
    values.next().map(str::to_owned)
}

fn answer(stream: &mut TcpStream, status: &str, fields: &str, body: &str) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
         {fields}Content-Length: {length}\r\n\r\n{body}"
    );
}

/// The slices of one service.
pub(crate) struct Kubernetes {
    server: Server,
    cluster: Arc<(Mutex<Cluster>, Condvar)>,
}

struct Cluster {
    version: u64,
    slices: BTreeMap<String, String>,
    /// Events with their versions.
    events: Vec<(u64, String)>,
    /// A watch from before this version is refused.
    oldest: u64,
    /// Watches that began before this count are cut in the middle of a line.
    generation: u64,
    token: String,
}

/// An endpoint: its address, and its conditions in JSON.
pub(crate) type Endpoint<'a> = (SocketAddr, &'a str);

pub(crate) const READY: &str = r#""ready":true,"serving":true,"terminating":false"#;
pub(crate) const NOT_READY: &str = r#""ready":false,"serving":false,"terminating":false"#;
pub(crate) const DRAINING: &str = r#""ready":false,"serving":true,"terminating":true"#;

impl Kubernetes {
    pub(crate) fn start(token: &str) -> Kubernetes {
        let cluster = Arc::new((
            Mutex::new(Cluster {
                version: 100,
                slices: BTreeMap::new(),
                events: Vec::new(),
                oldest: 0,
                generation: 0,
                token: token.to_owned(),
            }),
            Condvar::new(),
        ));
        let server = Server::start({
            let cluster = cluster.clone();
            move |stream| serve(stream, &cluster)
        });
        Kubernetes { server, cluster }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    fn change(&self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.cluster.0.lock().unwrap());
        self.cluster.1.notify_all();
    }

    /// Each slice has one port, which all of its endpoints have.
    pub(crate) fn set(&self, name: &str, endpoints: &[Endpoint<'_>]) {
        self.change(|cluster| {
            cluster.version += 1;
            let (version, port) = (cluster.version, endpoints[0].0.port());
            let list: Vec<String> = endpoints
                .iter()
                .map(|(address, conditions)| {
                    let ip = address.ip();
                    let name = format!("db-{}", address.port());
                    format!(
                        "{{\"addresses\":[\"{ip}\"],\"conditions\":{{{conditions}}},\
                         \"targetRef\":{{\"kind\":\"Pod\",\"name\":\"{name}\"}},\
                         \"nodeName\":\"n1\"}}"
                    )
                })
                .collect();
            let slice = format!(
                "{{\"kind\":\"EndpointSlice\",\"apiVersion\":\"discovery.k8s.io/v1\",\
                 \"metadata\":{{\"name\":\"{name}\",\"namespace\":\"prod\",\
                 \"resourceVersion\":\"{version}\",\
                 \"labels\":{{\"kubernetes.io/service-name\":\"db\"}}}},\
                 \"addressType\":\"IPv4\",\"endpoints\":[{}],\
                 \"ports\":[{{\"name\":\"sql\",\"protocol\":\"TCP\",\"port\":{port}}}]}}",
                list.join(",")
            );
            let is_new = cluster
                .slices
                .insert(name.to_owned(), slice.clone())
                .is_none();
            let kind = if is_new { "ADDED" } else { "MODIFIED" };
            cluster.events.push((version, event(kind, &slice)));
        });
    }

    pub(crate) fn remove(&self, name: &str) {
        self.change(|cluster| {
            cluster.version += 1;
            let slice = cluster.slices.remove(name).unwrap();
            cluster
                .events
                .push((cluster.version, event("DELETED", &slice)));
        });
    }

    /// Ends all watches in the middle of a line.
    pub(crate) fn cut(&self) {
        self.change(|cluster| cluster.generation += 1);
    }

    /// Forgets all events.
    pub(crate) fn compact(&self) {
        self.change(|cluster| {
            cluster.version += 1;
            cluster.oldest = cluster.version;
            cluster.events.clear();
        });
    }

    pub(crate) fn set_token(&self, token: &str) {
        self.change(|cluster| token.clone_into(&mut cluster.token));
    }
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn serve(mut stream: TcpStream, cluster: &(Mutex<Cluster>, Condvar)) {
    let Some((path, head)) = read_request(&mut stream) else {
        return;
    };
    let state = cluster.0.lock().unwrap();
    let place = "/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices\
                 ?labelSelector=kubernetes.io%2Fservice-name%3Ddb";
    let status = |code: u16, reason: &str, message: &str| {
        format!(
            "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\
             \"message\":\"{message}\",\"reason\":\"{reason}\",\"code\":{code}}}"
        )
    };
    let token = format!("authorization: Bearer {}\r\n", state.token);
    if !head.to_lowercase().contains(&token.to_lowercase()) {
        let body = status(401, "Unauthorized", "Unauthorized");
        return answer(&mut stream, "401 Unauthorized", "", &body);
    }
    if !path.starts_with(place) {
        let body = status(
            403,
            "Forbidden",
            "endpointslices.discovery.k8s.io is forbidden",
        );
        return answer(&mut stream, "403 Forbidden", "", &body);
    }
    if parameter(&path, "watch").is_none() {
        let slices: Vec<String> = state.slices.values().cloned().collect();
        let body = format!(
            "{{\"kind\":\"EndpointSliceList\",\"apiVersion\":\"discovery.k8s.io/v1\",\
             \"metadata\":{{\"resourceVersion\":\"{}\"}},\"items\":[{}]}}",
            state.version,
            slices.join(",")
        );
        drop(state);
        return answer(&mut stream, "200 OK", "", &body);
    }
    let from = parameter(&path, "resourceVersion")
        .unwrap()
        .parse()
        .unwrap();
    let gone = status(410, "Expired", "too old resource version");
    watch(&mut stream, cluster, state, from, &event("ERROR", &gone));
}

fn watch(
    stream: &mut TcpStream,
    (_, changed): &(Mutex<Cluster>, Condvar),
    mut state: MutexGuard<'_, Cluster>,
    mut from: u64,
    gone: &str,
) {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let generation = state.generation;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if from < state.oldest {
            let _ = write!(stream, "{:x}\r\n{gone}\r\n0\r\n\r\n", gone.len());
            return;
        }
        let known = from;
        for (version, event) in state.events.iter().filter(|(version, _)| *version > known) {
            if write!(stream, "{:x}\r\n{event}\r\n", event.len()).is_err() {
                return;
            }
            from = *version;
        }
        if state.generation != generation {
            let _ = stream.write_all(b"40\r\n{\"type\":\"MODIFIED\",\"obj");
            return;
        }
        if Instant::now() > end {
            return;
        }
        state = changed
            .wait_timeout(state, Duration::from_secs(1))
            .unwrap()
            .0;
    }
}

/// The instances of one service, whose queries wait.
pub(crate) struct Consul {
    server: Server,
    catalog: Arc<(Mutex<Catalog>, Condvar)>,
}

struct Catalog {
    index: u64,
    has_leader: bool,
    instances: String,
}

impl Consul {
    pub(crate) fn start() -> Consul {
        let catalog = Catalog {
            index: 10,
            has_leader: true,
            instances: "[]".to_owned(),
        };
        let catalog = Arc::new((Mutex::new(catalog), Condvar::new()));
        let server = Server::start({
            let catalog = catalog.clone();
            move |mut stream| {
                let Some((path, _)) = read_request(&mut stream) else {
                    return;
                };
                if !path.starts_with("/v1/health/service/db") {
                    return answer(&mut stream, "404 Not Found", "", "");
                }
                let number = |key: &str| {
                    let text = parameter(&path, key)?;
                    text.trim_end_matches("ms").parse::<u64>().ok()
                };
                let end = Instant::now() + Duration::from_millis(number("wait").unwrap_or(0));
                let mut state = catalog.0.lock().unwrap();
                while number("index") == Some(state.index) && Instant::now() < end {
                    state = catalog
                        .1
                        .wait_timeout(state, Duration::from_millis(20))
                        .unwrap()
                        .0;
                }
                let fields = format!(
                    "X-Consul-Index: {}\r\nX-Consul-KnownLeader: {}\r\nX-Consul-LastContact: 0\r\n",
                    state.index, state.has_leader
                );
                let body = if state.has_leader {
                    &state.instances[..]
                } else {
                    "[]"
                };
                answer(&mut stream, "200 OK", &fields, body);
            }
        });
        Consul { server, catalog }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    /// With the status of a check of each.
    pub(crate) fn set(&self, index: u64, instances: &[(SocketAddr, &str)]) {
        let list: Vec<String> = instances
            .iter()
            .map(|(address, status)| {
                let (ip, port) = (address.ip(), address.port());
                format!(
                    r#"{{
                        "Node": {{
                            "ID": "1", "Node": "n1", "Address": "10.9.9.9", "Datacenter": "dc1",
                            "TaggedAddresses": null, "Meta": null
                        }},
                        "Service": {{
                            "ID": "db-{port}", "Service": "db", "Tags": [], "Address": "{ip}",
                            "Meta": null, "Port": {port},
                            "Weights": {{"Passing": 1, "Warning": 1}}, "EnableTagOverride": false
                        }},
                        "Checks": [
                            {{"Node": "n1", "CheckID": "serfHealth", "Name": "Serf Health Status",
                              "Status": "passing"}},
                            {{"Node": "n1", "CheckID": "service:db-{port}", "Name": "db",
                              "Status": "{status}"}}
                        ]
                    }}"#
                )
            })
            .collect();
        self.change(|catalog| {
            catalog.index = index;
            catalog.instances = format!("[{}]", list.join(","));
        });
    }

    pub(crate) fn set_leader(&self, has_leader: bool) {
        self.change(|catalog| {
            catalog.index += 1;
            catalog.has_leader = has_leader;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Catalog)) {
        change(&mut self.catalog.0.lock().unwrap());
        self.catalog.1.notify_all();
    }
}
