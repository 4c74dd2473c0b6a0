//! The side of the old process.

use super::{
    Step, UpgradeError, UpgradeOrder, UpgradeRequest, binary, binary::NewProcess, link::Link,
    session_transfer::SessionTransfer,
};
use crate::{
    control::{
        HandedPlaces, OtherProcess, Server, State,
        journal::{JournalEntry, UpgradeStage},
    },
    handover::{
        channel::{Channel, ChannelError},
        counters::{self, Account},
        discovery::{self, DiscoveryRecord},
        fields::Fields as _,
        hello::{Accept, Formats, Hello, Ready, Refusal},
        listeners::{self, ListeningRecord, Protocol},
        message::{Kind, MOST_DESCRIPTORS, Message},
        places,
        pools::{self, PoolRecord},
        remainder::Remainder,
    },
    plan::Handover,
    proxy::udp::{FlowSender, FlowsSent, HandOverError, Scope},
    sys::process::{self, ChildEnd},
};
use std::{
    os::fd::OwnedFd,
    path::Path,
    process::id,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How long the new process may take until it could accept.
const START: Duration = Duration::from_secs(30);
/// How long it may take to begin to accept, and for a message to it.
const STEP: Duration = Duration::from_secs(3);
/// How long all flows together may take.
const FLOWS: Duration = Duration::from_secs(60);
/// From one message about what is left to the next.
const REPORT: Duration = Duration::from_millis(500);
/// Since this version of their format the new process takes what is known of pools a second time.
const POOLS_AGAIN: u16 = 2;
/// How long the end of a new process is waited for that has closed the channel.
const END: Duration = Duration::from_secs(1);
const END_LOOK: Duration = Duration::from_millis(20);
/// Descriptors that the new process needs beside those of this one.
const SPARE: u64 = 32;

/// A copy of what listens for the admin side.
pub struct AdminSocket {
    /// As configured.
    pub configured: String,
    pub owns_file: bool,
    pub socket: OwnedFd,
}

/// A new process that could accept.
pub struct Successor {
    link: Link,
    process: NewProcess,
    /// The addresses that it does not go on with, each with the name of its listener.
    left: Vec<(String, String)>,
    /// The same of datagrams.
    left_datagrams: Vec<(String, String)>,
}

/// What the old process goes on with when the new one has taken over.
pub struct Replaced {
    /// Of the new process.
    pub pid: u32,
    link: Link,
    /// What the new process knows of what was counted.
    sums: Vec<Account>,
    moving: Moving,
}

/// Sessions on their way to the new process.
#[derive(Default)]
struct Moving {
    /// `None`: the new process understands none, or none are to go there.
    transfer: Option<SessionTransfer>,
    /// `None`: this process gives places as before.
    places: Option<Arc<HandedPlaces>>,
}

/// Starts the new process and gives it what it needs; nothing has changed then, and dropping the
/// result ends that process. `None`: it was only to be checked.
pub async fn prepare(
    server: &Server,
    request: &UpgradeRequest,
    file: Option<&Path>,
    admin: Vec<AdminSocket>,
) -> Result<Option<Successor>, UpgradeError> {
    let state = &server.state;
    let UpgradeOrder { binary, check_only } = &request.order;
    refuse_if_impossible(server)?;
    let checked = binary::check(binary.as_deref(), file).await?;
    request.send_step(Step::Checked {
        binary: checked.binary.display().to_string(),
        version: checked.program.clone(),
        done: *check_only,
    });
    if *check_only {
        return Ok(None);
    }
    let (channel, theirs) = Channel::pair().map_err(UpgradeError::Copies)?;
    let mut process = NewProcess::start(&checked.binary, theirs, &server.runtime.manager)?;
    request.send_step(Step::Started { pid: process.pid });
    let binary = checked.binary.display();
    tracing::info!(pid = process.pid, %binary, "upgrade: process started");
    // The new process goes on with this journal.
    let stage = UpgradeStage::Started {
        successor: process.pid,
    };
    let what = format!("{binary} {}", checked.program);
    state.journal.record(JournalEntry::of_upgrade(stage, what));
    let mut link = Link::new(channel);
    link.formats = checked.formats;
    let begun = tokio::time::timeout(START, give(&mut link, state, server, admin));
    let result = begun.await.unwrap_or(Err(UpgradeError::Channel {
        waiting_for: Kind::Ready,
        source: ChannelError::TimedOut,
        ended: None,
    }));
    let Given {
        sockets,
        listeners,
        left,
        left_datagrams,
    } = result.map_err(|error| with_end(error, &mut process))?;
    request.send_step(Step::Ready { sockets, listeners });
    tracing::info!(
        pid = process.pid,
        sockets,
        listeners,
        "upgrade: process is ready"
    );
    Ok(Some(Successor {
        link,
        process,
        left,
        left_datagrams,
    }))
}

/// What the new process has got.
struct Given {
    sockets: usize,
    listeners: u64,
    left: Vec<(String, String)>,
    left_datagrams: Vec<(String, String)>,
}

fn refuse_if_impossible(server: &Server) -> Result<(), UpgradeError> {
    let state = &server.state;
    if state.is_draining() {
        return Err(UpgradeError::Stopping);
    }
    if let Some(previous) = state.previous() {
        return Err(UpgradeError::PreviousDrains { pid: previous.pid });
    }
    if id() == 1 {
        return Err(UpgradeError::FirstProcess);
    }
    match server.is_pending() {
        true => Err(UpgradeError::Starting),
        false => Ok(()),
    }
}

/// Sends everything, and waits until the new process is ready.
async fn give(
    link: &mut Link,
    state: &Arc<State>,
    server: &Server,
    admin: Vec<AdminSocket>,
) -> Result<Given, UpgradeError> {
    send(link, Kind::Hello, own_hello(state).write()).await?;
    let answer = receive(link, Kind::Hello, START).await?;
    let hello = Hello::read(&answer.body).map_err(|source| UpgradeError::Malformed {
        kind: Kind::Hello,
        source,
    })?;
    let open = process::usage().descriptors.unwrap_or_default();
    if hello.most_descriptors < open + SPARE {
        let most = hello.most_descriptors;
        return Err(UpgradeError::Descriptors { open, most });
    }
    link.formats = hello.formats;
    let mut sockets = server.runtime.copy_sockets().await;
    let copies = sockets.as_mut().map_err(|error| {
        UpgradeError::Copies(std::io::Error::new(error.kind(), error.to_string()))
    })?;
    copies.extend(admin.into_iter().map(|socket| {
        let record = ListeningRecord {
            listener: String::new(),
            configured: socket.configured,
            protocol: Protocol::Admin,
            owns_file: socket.owns_file,
        };
        (record, socket.socket)
    }));
    let copies = std::mem::take(copies);
    let of = |protocol| -> Vec<Option<(String, String)>> {
        let address = |record: &ListeningRecord| {
            let is_it = record.protocol == protocol;
            is_it.then(|| (record.listener.clone(), record.configured.clone()))
        };
        copies.iter().map(|(record, _)| address(record)).collect()
    };
    let (streams, datagrams) = (of(Protocol::Stream), of(Protocol::Datagram));
    send_sockets(link, copies).await?;
    send(link, Kind::Pools, pools::write(&pool_records(state))).await?;
    send(link, Kind::Journal, state.journal.to_record().write()).await?;
    if link.formats.common(Kind::Discovery).is_some() {
        let view = state.view();
        let records = view
            .discoveries
            .values()
            .map(|discovery| discovery.record());
        let records: Vec<DiscoveryRecord> = records.collect();
        send(link, Kind::Discovery, discovery::write(&records)).await?;
    }
    send(link, Kind::Prepare, Vec::new()).await?;
    let answer = receive(link, Kind::Ready, START).await?;
    let ready = Ready::read(&answer.body).map_err(|source| UpgradeError::Malformed {
        kind: Kind::Ready,
        source,
    })?;
    let unused = |addresses: &[Option<(String, String)>]| -> Vec<(String, String)> {
        let unused = ready.unused.iter().filter_map(|number| {
            let number = usize::try_from(*number).ok()?;
            addresses.get(number)?.clone()
        });
        unused.collect()
    };
    Ok(Given {
        sockets: streams.len(),
        listeners: ready.listeners,
        left: unused(&streams),
        left_datagrams: unused(&datagrams),
    })
}

async fn send_sockets(
    link: &mut Link,
    copies: Vec<(ListeningRecord, OwnedFd)>,
) -> Result<(), UpgradeError> {
    let mut copies = copies.into_iter().peekable();
    while copies.peek().is_some() {
        let part = copies.by_ref().take(MOST_DESCRIPTORS);
        let (records, sockets): (Vec<_>, Vec<_>) = part.unzip();
        let body = listeners::write(&records);
        let sent = link.send(Kind::Listeners, body, sockets, STEP).await;
        sent.map_err(|source| broken(Kind::Listeners, source))?;
    }
    Ok(())
}

impl Server {
    /// Lets the new process accept instead of this one. Where it fails, this one accepts again; the
    /// admin side is then to be served again, too.
    pub async fn hand_over(
        &mut self,
        successor: Successor,
        request: &UpgradeRequest,
    ) -> Result<Replaced, UpgradeError> {
        let Successor {
            mut link,
            mut process,
            left,
            left_datagrams,
        } = successor;
        let scope = scope_of_flows(&link.formats, self.state.view().plan.process.handover);
        let flows = Arc::new(self.runtime.flow_sender(&left_datagrams, scope));
        let state = Arc::clone(&self.state);
        let handover = state.view().plan.process.handover;
        // Before the workers confirm that they have paused: a session may leave from then on.
        let mut moving = Moving {
            transfer: match handover {
                Handover::Sessions => SessionTransfer::begin(self, &link),
                Handover::Listeners => None,
            },
            places: None,
        };
        // The file says "ready" all the time.
        state.give_up_ready_file(true).await;
        self.runtime.pause_accepting().await;
        state.close_doors().await;
        let given = self.commit(&mut link, &mut moving, request, &flows);
        match given.await {
            Ok(sums) => {
                let pid = process.pid;
                process.release();
                self.is_replaced = true;
                self.runtime.manager.note_successor(pid, &state).await;
                let sessions_left = state.process.sessions.connections().count();
                let flows_left = state.process.sessions.flows().count();
                tracing::info!(pid, sessions_left, flows_left, "upgrade: done");
                request.send_step(Step::Done {
                    pid,
                    sessions_left,
                    flows_left,
                    done: true,
                });
                self.runtime.close_addresses(&left).await;
                Ok(Replaced {
                    pid,
                    link,
                    sums,
                    moving,
                })
            }
            Err(error) => {
                let error = with_end(error, &mut process);
                // It must not accept beside this one, nor relay a session.
                drop(process);
                flows.take_back();
                moving.take_back_places();
                moving.end(&mut link, OtherProcess::Dead).await;
                self.runtime.resume_accepting().await;
                state.give_up_ready_file(false).await;
                Err(error)
            }
        }
    }

    /// Returns the sums that the new process has got.
    async fn commit(
        &self,
        link: &mut Link,
        moving: &mut Moving,
        request: &UpgradeRequest,
        flows: &Arc<FlowSender>,
    ) -> Result<Vec<Account>, UpgradeError> {
        let state = &self.state;
        // Operators may have changed something since they were sent first.
        if link.formats.common(Kind::Pools) >= Some(POOLS_AGAIN) {
            send(link, Kind::Pools, pools::write(&pool_records(state))).await?;
        }
        moving.hand_places(link, state).await?;
        let sums = state.accounts();
        send(link, Kind::Counters, counters::write(&sums)).await?;
        let next_session = state.process.sessions.next_id();
        let accept = Accept { next_session };
        send(link, Kind::Accept, accept.write()).await?;
        receive(link, Kind::Accepting, STEP).await?;
        request.send_step(Step::Accepting);
        tracing::info!("upgrade: the new process accepts");
        if let Some(transfer) = &mut moving.transfer {
            let sent = transfer.send_waiting(link).await;
            sent.map_err(|source| broken(Kind::SessionsTaken, source))?;
        }
        send_flows(link, Arc::clone(flows)).await?;
        let handover = state.view().plan.process.handover;
        match &mut moving.transfer {
            Some(transfer) => send_sessions(link, transfer, request).await?,
            None if handover == Handover::Listeners => {
                tracing::info!("upgrade: sessions stay here, as configured");
            }
            None => tracing::warn!("upgrade: no common format of sessions, they stay here"),
        }
        send(link, Kind::End, Vec::new()).await?;
        Ok(sums)
    }
}

impl Moving {
    /// Lets the new process give the places of backends, if sessions that wait go there.
    async fn hand_places(&mut self, link: &mut Link, state: &State) -> Result<(), UpgradeError> {
        let has_formats = link
            .formats
            .missing(&[Kind::Waiting, Kind::Places])
            .is_none();
        let Some(transfer) = self.transfer.as_mut().filter(|_| has_formats) else {
            return Ok(());
        };
        let places = Arc::new(HandedPlaces::hand(&state.view()));
        self.places = Some(Arc::clone(&places));
        let records = places.records();
        let body = places::write(&records);
        transfer.set_places(&places, records);
        send(link, Kind::Places, body).await
    }

    /// The new process has ended.
    fn take_back_places(&mut self) {
        if let Some(places) = self.places.take() {
            places.take_back();
        }
    }

    /// Sessions that were not taken go on in this process.
    async fn end(&mut self, link: &mut Link, other: OtherProcess) {
        if let Some(transfer) = self.transfer.take() {
            transfer.end(link, other).await;
        }
    }
}

/// What the other process gets of datagrams.
fn scope_of_flows(formats: &Formats, handover: Handover) -> Scope {
    let flows = match handover {
        Handover::Sessions => formats.common(Kind::UdpFlows),
        Handover::Listeners => None,
    };
    let sockets = formats.common(Kind::UdpGroup).unwrap_or(1);
    flows.map_or(Scope::SocketsAlone { version: sockets }, |version| {
        Scope::Flows { version }
    })
}

/// Sends the flows of datagrams, with their listening sockets.
async fn send_flows(link: &mut Link, sender: Arc<FlowSender>) -> Result<(), UpgradeError> {
    let send = move |channel: &mut Channel| Ok(sender.send_flows(channel));
    let given = link.call(FLOWS, send).await;
    let given = given.map_err(|source| broken(Kind::UdpTaken, source))?;
    let FlowsSent {
        flows,
        refused,
        longest_pause,
    } = given.map_err(|error| match error {
        HandOverError::Channel(source) => broken(Kind::UdpTaken, source),
        error => UpgradeError::Flows(error),
    })?;
    tracing::info!(flows, refused, ?longest_pause, "upgrade: flows are given");
    Ok(())
}

async fn send_sessions(
    link: &mut Link,
    transfer: &mut SessionTransfer,
    request: &UpgradeRequest,
) -> Result<(), UpgradeError> {
    let sent = transfer.send_all(link).await;
    sent.map_err(|source| broken(Kind::SessionsTaken, source))?;
    let report = transfer.report();
    let (taken, refused) = (report.taken, report.refused.values().sum());
    tracing::info!(taken, refused, "upgrade: sessions moved");
    for (reason, sessions) in &report.refused {
        tracing::warn!(reason, sessions, "upgrade: sessions stay here");
    }
    request.send_step(Step::Sessions { taken, refused });
    Ok(())
}

impl Replaced {
    /// Lets the new process know of what this one still carries and counts, until `ended`. Returns
    /// whether that process serves, or has ended as it should.
    pub async fn report_rest(mut self, state: Arc<State>, ended: CancellationToken) -> bool {
        let mut due = Instant::now();
        loop {
            let is_last = ended.is_cancelled();
            if is_last || Instant::now() >= due {
                due = Instant::now() + REPORT;
                if let Err(error) = self.report(&state).await {
                    let is_closed = |source: &ChannelError| matches!(source, ChannelError::Closed);
                    if matches!(&error, UpgradeError::Channel { source, .. } if is_closed(source)) {
                        return self.note_end().await;
                    }
                    self.moving.end(&mut self.link, OtherProcess::Alive).await;
                    // To the other process the end of the channel would be that of this one.
                    ended.cancelled().await;
                    return true;
                }
                if is_last {
                    return true;
                }
            }
            if !self.follow(&ended).await {
                return self.note_end().await;
            }
        }
    }

    /// The new process has closed the channel. Sessions go on here.
    async fn note_end(&mut self) -> bool {
        self.moving.end(&mut self.link, OtherProcess::Dead).await;
        // The channel is closed first.
        let began = Instant::now();
        let end = loop {
            match process::end_of_child(self.pid) {
                None if began.elapsed() < END => tokio::time::sleep(END_LOOK).await,
                end => break end,
            }
        };
        if end.is_some() {
            self.moving.take_back_places();
        }
        match end {
            Some(ChildEnd::Failure) => {}
            Some(ChildEnd::Regular) | None => return true,
        }
        let pid = self.pid;
        tracing::error!(
            pid,
            "the process that has taken over has failed, none serves"
        );
        false
    }

    /// Sends sessions that begin to be relayed only now, for some time. Returns whether the new
    /// process is there.
    async fn follow(&mut self, ended: &CancellationToken) -> bool {
        let Some(transfer) = &mut self.moving.transfer else {
            tokio::select! {
                () = tokio::time::sleep(REPORT) => {}
                () = ended.cancelled() => {}
            }
            return true;
        };
        let (other, error) = match transfer.follow(&mut self.link).await {
            Ok(()) => return true,
            Err(ChannelError::Closed) => (OtherProcess::Dead, None),
            Err(error) => (OtherProcess::Alive, Some(error)),
        };
        self.moving.end(&mut self.link, other).await;
        // It serves, so that it is not for this process to end it.
        if let Some(error) = error {
            tracing::warn!(%error, "upgrade: no more sessions move");
        }
        other == OtherProcess::Alive
    }

    async fn report(&mut self, state: &State) -> Result<(), UpgradeError> {
        let now = state.accounts();
        let added = counters::since(&now, &self.sums);
        if !added.is_empty() {
            send(&mut self.link, Kind::Counters, counters::write(&added)).await?;
            self.sums = now;
        }
        let sessions = &state.process.sessions;
        let rest = Remainder {
            sessions: sessions.connections().count(),
            flows: sessions.flows().count(),
        };
        send(&mut self.link, Kind::Remainder, rest.write()).await
    }
}

fn pool_records(state: &State) -> Vec<PoolRecord> {
    state.view().pools().map(|pool| pool.record()).collect()
}

fn own_hello(state: &State) -> Hello {
    super::own_hello(&state.view().hash, state.workers)
}

async fn send(link: &mut Link, kind: Kind, body: Vec<u8>) -> Result<(), UpgradeError> {
    let sent = link.send(kind, body, Vec::new(), STEP).await;
    sent.map(drop).map_err(|source| broken(kind, source))
}

/// A refusal is an error.
async fn receive(
    link: &mut Link,
    expected: Kind,
    limit: Duration,
) -> Result<Message, UpgradeError> {
    let received = link.receive(limit).await;
    let message = received.map_err(|source| broken(expected, source))?;
    match message.kind {
        kind if kind == expected => Ok(message),
        Kind::Refusal => {
            let refusal = Refusal::read(&message.body);
            Err(UpgradeError::Refused(refusal.map_or_else(
                |malformed| malformed.to_string(),
                |refusal| refusal.reason,
            )))
        }
        kind => Err(UpgradeError::Unexpected {
            kind,
            waiting_for: expected,
        }),
    }
}

fn broken(waiting_for: Kind, source: ChannelError) -> UpgradeError {
    UpgradeError::Channel {
        waiting_for,
        source,
        ended: None,
    }
}

/// Adds how the process has ended, if it has.
fn with_end(error: UpgradeError, process: &mut NewProcess) -> UpgradeError {
    match error {
        UpgradeError::Channel {
            waiting_for,
            source,
            ..
        } => UpgradeError::Channel {
            waiting_for,
            source,
            ended: process.ended(),
        },
        error => error,
    }
}
