//! The side of the new process.

use super::{PreviousProcess, inheritance::Inheritance, link::Link, own_hello};
use crate::{
    config,
    control::{
        Server, SessionReceiver, State,
        apply::worker_count,
        inherited::HandedSocket,
        journal::{JournalEntry, UpgradeStage, seconds},
    },
    handover::{
        channel::{Channel, ChannelError},
        counters, discovery,
        fields::Fields as _,
        hello::{Accept, Hello, Ready, Refusal},
        journal::JournalRecord,
        listeners::{self, ListeningRecord, Protocol},
        message::{Descriptors, Kind, Message},
        places, pools,
        record::Malformed,
        remainder::Remainder,
    },
    plan::{Plan, counted},
    proxy::udp::FlowReceiver,
    sys::{self, upgrade_channel},
};
use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// For each message of the old process before it accepts no more.
const STEP: Duration = Duration::from_secs(30);
/// How long the first checks are waited for before this process calls itself ready.
const CHECKS: Duration = Duration::from_secs(20);
/// Between two messages of the old process once this one accepts.
const REST: Duration = Duration::from_secs(3600);

/// The old process, up to the moment when this one accepts.
pub struct Predecessor {
    link: Link,
    pid: u32,
    /// Of the admin side.
    admin_sockets: Vec<AdminSocket>,
}

/// What listened for the admin side.
pub struct AdminSocket {
    pub configured: String,
    pub owns_file: bool,
    pub socket: OwnedFd,
    number: u64,
}

/// The old process, which accepts no more.
pub struct Previous {
    link: Link,
    flows: FlowReceiver,
    upgrade: UpgradeRecord,
}

/// What the journal says of an upgrade in the end.
struct UpgradeRecord {
    /// Of the old process.
    pid: u32,
    /// When this process began to accept.
    began: Instant,
    is_recorded: bool,
}

impl UpgradeRecord {
    fn record(&mut self, sessions: usize, state: &State) {
        if std::mem::replace(&mut self.is_recorded, true) {
            return;
        }
        let flows = state.process.sessions.flows().count();
        let (sessions, flows) = (counted(sessions, "session"), counted(flows, "flow"));
        let took = seconds(self.began.elapsed());
        let what = format!("{sessions} and {flows} taken over in {took} s");
        let predecessor = self.pid;
        let stage = UpgradeStage::Done { predecessor };
        state.journal.record(JournalEntry::of_upgrade(stage, what));
    }
}

/// Why this process does not take over.
#[derive(Debug)]
pub enum TakeOverError {
    NoChannel(io::Error),
    Channel {
        waiting_for: Kind,
        source: ChannelError,
    },
    Unexpected {
        kind: Kind,
        waiting_for: Kind,
    },
    Malformed {
        kind: Kind,
        source: Malformed,
    },
    /// There are not as many descriptors as records of sockets.
    Sockets,
}

/// The channel to the process that this one is to replace; `None`: it replaces none.
pub fn predecessor() -> Result<Option<Predecessor>, TakeOverError> {
    let Some(channel) = upgrade_channel::take_channel() else {
        return Ok(None);
    };
    let channel = channel.map_err(TakeOverError::NoChannel)?;
    Ok(Some(Predecessor {
        link: Link::new(Channel::new(channel)),
        pid: 0,
        admin_sockets: Vec::new(),
    }))
}

impl Predecessor {
    /// Exchanges greetings, and receives what is needed to start.
    pub async fn receive(&mut self, plan: &Plan) -> Result<Inheritance, TakeOverError> {
        let message = self.next(Kind::Hello).await?;
        let hello = read_body(&message, Hello::read)?;
        self.pid = hello.pid;
        self.link.formats = hello.formats;
        let own = own_hello(&config::hash(plan), worker_count(&plan.process));
        self.send(Kind::Hello, own.write()).await?;
        let mut inheritance = Inheritance::default();
        loop {
            let message = self.next(Kind::Prepare).await?;
            match message.kind {
                Kind::Listeners => self.add_sockets(message, &mut inheritance)?,
                Kind::Pools => {
                    inheritance.pools = read_body(&message, pools::read)?;
                }
                Kind::Journal => {
                    inheritance.journal = read_body(&message, JournalRecord::read)?;
                }
                Kind::Discovery => {
                    inheritance.discoveries = read_body(&message, discovery::read)?;
                }
                Kind::Prepare => return Ok(inheritance),
                kind => {
                    return Err(TakeOverError::Unexpected {
                        kind,
                        waiting_for: Kind::Prepare,
                    });
                }
            }
        }
    }

    fn add_sockets(
        &mut self,
        message: Message,
        inheritance: &mut Inheritance,
    ) -> Result<(), TakeOverError> {
        let records = read_body(&message, listeners::read::<ListeningRecord>)?;
        let mut sockets = Descriptors::new(message.descriptors);
        let sockets = sockets.take(records.len()).filter(|_| sockets.left() == 0);
        let sockets = sockets.ok_or(TakeOverError::Sockets)?;
        for (record, socket) in records.into_iter().zip(sockets) {
            let number = (inheritance.sockets.len() + self.admin_sockets.len()) as u64;
            match record.protocol {
                Protocol::Admin => self.admin_sockets.push(AdminSocket {
                    configured: record.configured,
                    owns_file: record.owns_file,
                    socket,
                    number,
                }),
                Protocol::Stream | Protocol::Datagram => inheritance.sockets.push(HandedSocket {
                    record,
                    number,
                    socket,
                }),
            }
        }
        Ok(())
    }

    /// The socket of the admin side that listens at this address, if there is one.
    pub fn take_admin_socket(&mut self, configured: &str) -> Option<AdminSocket> {
        let is_it = |socket: &AdminSocket| socket.configured == configured;
        let found = self.admin_sockets.iter().position(is_it)?;
        Some(self.admin_sockets.remove(found))
    }

    /// The old process goes on as it was.
    pub async fn refuse(mut self, why: &str) {
        let refusal = Refusal {
            reason: why.to_owned(),
        };
        // It sees the end of this process as well.
        let _ = self.send(Kind::Refusal, refusal.write()).await;
    }

    /// Says that this process could accept, and returns when it may.
    async fn wait_for_accept(&mut self, ready: &Ready, state: &State) -> Result<(), TakeOverError> {
        match self.receive_accept(ready, state).await {
            // It has died, and this process has everything.
            Err(TakeOverError::Channel {
                source: ChannelError::Closed,
                ..
            }) => {
                tracing::warn!("the old process has ended early, accepting");
                Ok(())
            }
            received => received,
        }
    }

    async fn receive_accept(&mut self, ready: &Ready, state: &State) -> Result<(), TakeOverError> {
        self.send(Kind::Ready, ready.write()).await?;
        loop {
            let message = self.next(Kind::Accept).await?;
            match message.kind {
                Kind::Counters => state.add_counters(&read_body(&message, counters::read)?),
                Kind::Pools => state.take_over_settings(&read_body(&message, pools::read)?),
                Kind::Places => state.note_places(&read_body(&message, places::read)?),
                Kind::Accept => {
                    let accept = read_body(&message, Accept::read)?;
                    state.process.sessions.reserve_ids(accept.next_session);
                    return Ok(());
                }
                kind => {
                    return Err(TakeOverError::Unexpected {
                        kind,
                        waiting_for: Kind::Accept,
                    });
                }
            }
        }
    }

    async fn send(&mut self, kind: Kind, body: Vec<u8>) -> Result<(), TakeOverError> {
        let sent = self.link.send(kind, body, Vec::new(), STEP).await;
        sent.map(drop).map_err(|source| TakeOverError::Channel {
            waiting_for: kind,
            source,
        })
    }

    async fn next(&mut self, waiting_for: Kind) -> Result<Message, TakeOverError> {
        let received = self.link.receive(STEP).await;
        received.map_err(|source| TakeOverError::Channel {
            waiting_for,
            source,
        })
    }
}

impl Server {
    /// Tells the old process that this one could accept, waits until it may, and accepts.
    pub async fn take_over(
        &mut self,
        mut predecessor: Predecessor,
    ) -> Result<Previous, TakeOverError> {
        self.wait_for_checks(CHECKS).await;
        let admin_sockets = predecessor
            .admin_sockets
            .drain(..)
            .map(|socket| socket.number);
        let mut unused: Vec<u64> = admin_sockets.collect();
        unused.extend(self.runtime.unused.iter().copied());
        let ready = Ready {
            listeners: self.state.view().listeners.len() as u64,
            unused,
        };
        predecessor.wait_for_accept(&ready, &self.state).await?;
        self.runtime.begin_accepting();
        let Predecessor { mut link, pid, .. } = predecessor;
        // It may have died meanwhile.
        let _ = link
            .send(Kind::Accepting, Vec::new(), Vec::new(), STEP)
            .await;
        self.state.give_up_ready_file(false).await;
        tracing::info!(pid, "taken over from another process");
        Ok(Previous {
            link,
            flows: self.runtime.flow_taker(),
            upgrade: UpgradeRecord {
                pid,
                began: Instant::now(),
                is_recorded: false,
            },
        })
    }
}

impl Previous {
    /// Receives what is left of the old process, until its end.
    pub fn follow(self, server: &Server) -> io::Result<()> {
        let version = self
            .link
            .formats
            .common(Kind::SessionsTaken)
            .unwrap_or_default();
        let state = &server.state;
        let mut sessions = SessionReceiver::new(state.view(), server.carriers(), version);
        let Some(mut channel) = self.link.into_channel() else {
            state.take_back_places();
            return Ok(());
        };
        let (state, mut upgrade, mut flows) = (Arc::clone(state), self.upgrade, self.flows);
        let pid = upgrade.pid;
        let process = sys::process::watch(pid);
        state.set_previous(Some(PreviousProcess::new(pid)));
        let follow = move || {
            let end = receive_rest(
                &mut channel,
                &mut sessions,
                &mut flows,
                &mut upgrade,
                &state,
            );
            // Where it has died before it had handed over all.
            upgrade.record(sessions.taken(), &state);
            // Whatever has become of the old process, this one serves.
            state.is_main.cancel();
            // Otherwise the old process goes on with what this one has not taken.
            if matches!(end, ChannelError::Closed) {
                flows.begin_rest();
                take_places(&state, process.as_ref());
            }
            state.set_previous(None);
            // Of messages, which no process gets twice.
            sys::memory::give_back_all();
            match end {
                ChannelError::Closed => tracing::info!(pid, "the old process has ended"),
                error => {
                    tracing::warn!(pid, %error, "nothing more is known of the old process");
                    drop(channel);
                    take_places(&state, process.as_ref());
                }
            }
        };
        let thread = thread::Builder::new().name("handover".to_owned());
        thread.spawn(follow).map(drop)
    }
}

fn read_body<T>(
    message: &Message,
    read: impl FnOnce(&[u8]) -> Result<T, Malformed>,
) -> Result<T, TakeOverError> {
    let kind = message.kind;
    read(&message.body).map_err(|source| TakeOverError::Malformed { kind, source })
}

/// Gives all places, once the old process has no sessions: its channel may be closed before them.
fn take_places(state: &State, process: Option<&OwnedFd>) {
    state.expect_no_line();
    if let Some(process) = process {
        sys::process::wait_for_end(process);
    }
    state.take_back_places();
}

fn receive_rest(
    channel: &mut Channel,
    sessions: &mut SessionReceiver,
    flows: &mut FlowReceiver,
    upgrade: &mut UpgradeRecord,
    state: &State,
) -> ChannelError {
    let mut has_all = false;
    loop {
        let message = match channel.receive_any(Instant::now() + REST) {
            Ok(message) => message,
            Err(error) => return error,
        };
        let version = message.version;
        match message.kind {
            Kind::Remainder => match Remainder::read(&message.body) {
                Ok(rest) => {
                    state.note_rest(rest);
                    // The old process has notified the service manager before it sends this.
                    if has_all {
                        state.is_main.cancel();
                    }
                }
                Err(error) => tracing::warn!(%error, "the old process has sent something strange"),
            },
            Kind::Counters => match counters::read(&message.body) {
                Ok(accounts) => state.add_counters(&accounts),
                Err(error) => tracing::warn!(%error, "the old process has sent something strange"),
            },
            Kind::Places => match places::read(&message.body) {
                Ok(places) => state.note_places(&places),
                Err(error) => tracing::warn!(%error, "the old process has sent something strange"),
            },
            Kind::Sessions | Kind::Waiting => {
                if let Err(error) = sessions.receive(message, channel) {
                    return error;
                }
            }
            Kind::UdpFlows | Kind::UdpGroup => {
                let taken = match flows.receive(message) {
                    Ok(taken) => taken,
                    Err(error) => {
                        tracing::warn!(%error, "cannot take flows over");
                        return ChannelError::Garbage("a batch of flows");
                    }
                };
                let deadline = Instant::now() + STEP;
                if let Err(error) = channel.send(Kind::UdpTaken, version, &taken, &[], deadline) {
                    return error;
                }
            }
            Kind::End => {
                flows.begin_rest();
                sessions.log_taken();
                upgrade.record(sessions.taken(), state);
                has_all = true;
            }
            kind => tracing::warn!(%kind, "the old process has sent something unexpected"),
        }
    }
}

impl fmt::Display for TakeOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoChannel(error) => {
                write!(f, "cannot use the channel to the old process: {error}")
            }
            Self::Channel {
                waiting_for,
                source,
            } => write!(f, "{source}, at {waiting_for}"),
            Self::Unexpected { kind, waiting_for } => {
                write!(
                    f,
                    "the old process has sent {kind} instead of {waiting_for}"
                )
            }
            Self::Malformed { kind, source } => {
                write!(f, "the old process has sent {kind} that {source}")
            }
            Self::Sockets => f.write_str("the old process has sent other sockets than it named"),
        }
    }
}

impl std::error::Error for TakeOverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoChannel(source) => Some(source),
            Self::Channel { source, .. } => Some(source),
            Self::Malformed { source, .. } => Some(source),
            Self::Unexpected { .. } | Self::Sockets => None,
        }
    }
}
