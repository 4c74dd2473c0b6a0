//! Kind `sentinel`: which servers Redis Sentinel names. It proposes; the check of the upstream
//! decides which of them has the role.

use super::{
    Found, Interval, Snapshot, Source, SourceError,
    redis_client::{RedisClient, Value},
};
use crate::plan::{Discover, RedisLogin, ServerAddress, Want};
use crate::sys::task::boxed;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

/// From one attempt to subscribe to the next.
const SUBSCRIBE_PAUSE: Duration = Duration::from_secs(2);
/// Something has changed: ask now.
const CHANNELS: [&[u8]; 3] = [b"+switch-master", b"+slave", b"+reset-master"];

pub(crate) struct SentinelSource {
    sentinels: Vec<ServerAddress>,
    master: String,
    want: Want,
    login: RedisLogin,
    timeout: Duration,
    interval: Interval,
    hinted: Arc<Notify>,
    /// Wait for messages, once there was an answer.
    subscriptions: Vec<Subscription>,
}

/// A task that ends with it.
struct Subscription(AbortHandle);

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What one Sentinel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    /// Counts the fail-overs of the group.
    epoch: u64,
    primary: String,
    replicas: Vec<String>,
}

impl SentinelSource {
    pub(crate) fn new(
        sentinels: &[ServerAddress],
        master: &str,
        want: Want,
        login: &RedisLogin,
        discover: &Discover,
    ) -> Self {
        Self {
            sentinels: sentinels.to_vec(),
            master: master.to_owned(),
            want,
            login: login.clone(),
            timeout: discover.timeout,
            interval: Interval::new(discover.interval),
            hinted: Arc::default(),
            subscriptions: Vec::new(),
        }
    }

    /// Asks all Sentinels; half of them must answer: those on the smaller side of a divided network
    /// do not know better.
    async fn ask(&self) -> Result<Snapshot, SourceError> {
        let mut asked = JoinSet::new();
        for server in &self.sentinels {
            let (server, login) = (server.clone(), self.login.clone());
            let (master, want, limit) = (self.master.clone(), self.want, self.timeout);
            asked.spawn(boxed(async move {
                let view = timeout(limit, ask_one(&server, &login, &master, want)).await;
                view.unwrap_or_else(|_| {
                    let error = SourceError::timed_out(limit);
                    Err(error.at(&format!("server {}", server.text)))
                })
            }));
        }
        let (mut views, mut errors) = (Vec::new(), Vec::new());
        while let Some(view) = asked.join_next().await {
            match view {
                Ok(Ok(view)) => views.push(view),
                Ok(Err(error)) => errors.push(error.message),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if views.len() * 2 < self.sentinels.len() || views.is_empty() {
            errors.sort_unstable();
            let (count, all) = (views.len(), self.sentinels.len());
            let why = errors.join("; ");
            return Err(SourceError::new(format!(
                "{count} of {all} Sentinels answer: {why}"
            )));
        }
        let view = choose(views);
        let version = format!("epoch {}, primary {}", view.epoch, view.primary);
        let mut backends = Vec::new();
        if self.want != Want::Replicas {
            backends.push(Found::new(view.primary.clone()));
        }
        if self.want != Want::Primary {
            backends.extend(view.replicas.into_iter().map(Found::new));
        }
        Ok(Snapshot {
            backends,
            version,
            valid_for: None,
            gap: None,
        })
    }

    fn subscribe(&mut self) {
        if !self.subscriptions.is_empty() {
            return;
        }
        for server in &self.sentinels {
            let listening = listen(server.clone(), self.login.clone(), Arc::clone(&self.hinted));
            let handle = tokio::spawn(boxed(listening)).abort_handle();
            self.subscriptions.push(Subscription(handle));
        }
    }
}

impl Source for SentinelSource {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        tokio::select! {
            () = self.interval.wait() => {}
            () = self.hinted.notified() => {}
        }
        let snapshot = self.ask().await?;
        self.subscribe();
        self.interval.answered(None);
        Ok(snapshot)
    }
}

async fn ask_one(
    server: &ServerAddress,
    login: &RedisLogin,
    master: &str,
    want: Want,
) -> Result<View, SourceError> {
    let mut client = RedisClient::connect(server, login).await?;
    let name = master.as_bytes();
    // During a fail-over this is the new primary, before the other replies know it.
    let primary = client
        .ask_for(&[b"SENTINEL", b"get-master-addr-by-name", name])
        .await?;
    let Some(primary) = read_address(&primary) else {
        return Err(client.wrong(&format_args!(
            "it watches no group {master:?}: see `master`"
        )));
    };
    let group = client.ask_for(&[b"SENTINEL", b"master", name]).await?;
    let group = read_fields(&group);
    let epoch = group
        .get("config-epoch")
        .and_then(|epoch| epoch.parse().ok());
    let mut replicas = Vec::new();
    if want != Want::Primary {
        // `slaves` is known to every version.
        let list = client.ask_for(&[b"SENTINEL", b"slaves", name]).await?;
        let Value::List(list) = list else {
            return Err(client.wrong(&"its list of replicas is none"));
        };
        for replica in list.iter().map(read_fields) {
            let is_announced = replica
                .get("replica-announced")
                .is_none_or(|flag| flag != "0");
            let address = replica.get("ip").zip(replica.get("port"));
            if let (true, Some((host, port))) = (is_announced, address) {
                replicas.push(join(host, port));
            }
        }
        // After a fail-over the new primary is still listed for a moment.
        replicas.retain(|replica| *replica != primary);
        replicas.sort_unstable();
    }
    Ok(View {
        epoch: epoch.unwrap_or_default(),
        primary,
        replicas,
    })
}

/// The latest configuration counts; of several with one epoch the one that most have.
fn choose(views: Vec<View>) -> View {
    let latest = views
        .iter()
        .map(|view| view.epoch)
        .max()
        .unwrap_or_default();
    let views = views.into_iter().filter(|view| view.epoch == latest);
    let mut votes: BTreeMap<String, Vec<View>> = BTreeMap::new();
    for view in views {
        votes.entry(view.primary.clone()).or_default().push(view);
    }
    let most = votes.into_values().max_by_key(Vec::len).unwrap_or_default();
    let mut replicas: Vec<String> = most.iter().flat_map(|view| view.replicas.clone()).collect();
    replicas.sort_unstable();
    replicas.dedup();
    View {
        epoch: latest,
        primary: most
            .first()
            .map(|view| view.primary.clone())
            .unwrap_or_default(),
        replicas,
    }
}

/// Host and port, as the address of a backend.
fn read_address(reply: &Value) -> Option<String> {
    let Value::List(parts) = reply else {
        return None;
    };
    match &parts[..] {
        [Value::Text(Some(host)), Value::Text(Some(port))] => {
            Some(join(str::from_utf8(host).ok()?, str::from_utf8(port).ok()?))
        }
        _ => None,
    }
}

fn join(host: &str, port: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Names and values alternate.
fn read_fields(reply: &Value) -> BTreeMap<String, String> {
    let Value::List(items) = reply else {
        return BTreeMap::new();
    };
    let text = |value: &Value| match value {
        Value::Text(Some(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    let pairs = items.chunks_exact(2);
    pairs.map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
}

/// Reports every message of a Sentinel about changes, for ever.
async fn listen(server: ServerAddress, login: RedisLogin, hinted: Arc<Notify>) {
    loop {
        // An error is that of the next question as well.
        let _ = listen_once(&server, &login, &hinted).await;
        tokio::time::sleep(SUBSCRIBE_PAUSE).await;
    }
}

async fn listen_once(
    server: &ServerAddress,
    login: &RedisLogin,
    hinted: &Notify,
) -> Result<(), SourceError> {
    let mut client = RedisClient::connect(server, login).await?;
    let command: Vec<&[u8]> = [&b"SUBSCRIBE"[..]].into_iter().chain(CHANNELS).collect();
    client.send(&command).await?;
    loop {
        let message = client.receive().await?;
        if let Value::List(parts) = &message
            && parts.first() == Some(&Value::Text(Some(b"message".to_vec())))
        {
            hinted.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(epoch: u64, primary: &str, replicas: &[&str]) -> View {
        View {
            epoch,
            primary: primary.to_owned(),
            replicas: replicas.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn the_latest_epoch_counts_and_then_the_majority() {
        let old = view(1, "a:1", &["b:1"]);
        let new = view(2, "b:1", &["a:1"]);
        assert_eq!(choose(vec![old.clone(), old.clone(), new.clone()]), new);
        let other = view(2, "c:1", &["a:1"]);
        assert_eq!(choose(vec![other, new.clone(), new.clone()]), new);
        let more = view(2, "b:1", &["c:1"]);
        assert_eq!(choose(vec![new, more]), view(2, "b:1", &["a:1", "c:1"]));
    }

    #[test]
    fn replies_are_addresses_and_fields() {
        let texts = |texts: &[&str]| {
            let value = |text: &&str| Value::Text(Some(text.as_bytes().to_vec()));
            Value::List(texts.iter().map(value).collect())
        };
        assert_eq!(
            read_address(&texts(&["10.0.0.1", "6379"])),
            Some("10.0.0.1:6379".into())
        );
        assert_eq!(
            read_address(&texts(&["::1", "6379"])),
            Some("[::1]:6379".into())
        );
        assert_eq!(read_address(&Value::Text(None)), None);
        let fields = read_fields(&texts(&["ip", "10.0.0.1", "port", "1", "odd"]));
        assert_eq!(fields["ip"], "10.0.0.1");
        assert_eq!(fields.len(), 2);
    }
}
