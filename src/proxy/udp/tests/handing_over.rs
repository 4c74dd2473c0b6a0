use super::process::{Begins, Group, PATIENCE, Process, hand_over, try_hand_over, wait_until};
use crate::{
    handover::{
        channel::Channel,
        fields::Fields as _,
        message::{Kind, Message},
    },
    plan::reason::CloseReason,
    proxy::udp::{HandOverError, Order, Scope},
    sys::datagram::receive_buffer,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const V4: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Sends back what it gets, in order, unless it is to keep it.
struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stops: AtomicBool,
    count: AtomicUsize,
    keeps: AtomicBool,
    /// The numbers that came from each peer, in their order.
    came: Mutex<BTreeMap<SocketAddr, Vec<u32>>>,
}

impl Backend {
    fn start() -> Self {
        let socket = UdpSocket::bind((V4, 0)).expect("a port");
        receive_buffer(&socket, 8 << 20);
        let timeout = Some(Duration::from_millis(5));
        socket.set_read_timeout(timeout).expect("a timeout");
        let address = socket.local_addr().expect("an address");
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let mut bytes = [0; 2_048];
            let mut kept: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
            while !own.stops.load(SeqCst) {
                if !own.keeps.load(SeqCst) {
                    for (peer, bytes) in kept.drain(..) {
                        let _ = socket.send_to(&bytes, peer);
                    }
                }
                let Ok((length, peer)) = socket.recv_from(&mut bytes) else {
                    continue;
                };
                let bytes = &bytes[..length];
                own.came
                    .lock()
                    .expect("no panic")
                    .entry(peer)
                    .or_default()
                    .push(number(bytes));
                own.count.fetch_add(1, SeqCst);
                match own.keeps.load(SeqCst) {
                    true => kept.push((peer, bytes.to_vec())),
                    false => drop(socket.send_to(bytes, peer)),
                }
            }
        });
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    fn keep(&self, keeps: bool) {
        self.shared.keeps.store(keeps, SeqCst);
    }

    fn came(&self) -> BTreeMap<SocketAddr, Vec<u32>> {
        self.shared.came.lock().expect("no panic").clone()
    }

    fn count(&self) -> usize {
        self.shared.count.load(SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stops.store(true, SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// At the end of a datagram, where a header may be in front.
fn number(bytes: &[u8]) -> u32 {
    let last = bytes.last_chunk().expect("a number");
    u32::from_le_bytes(*last)
}

fn client(front: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((V4, 0)).expect("a port");
    receive_buffer(&socket, 1 << 20);
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect(front).expect("connected");
    socket
}

fn send(client: &UdpSocket, n: u32) {
    client.send(&n.to_le_bytes()).expect("sent");
}

#[track_caller]
fn receive(client: &UdpSocket) -> u32 {
    let mut bytes = [0; 2_048];
    let length = client.recv(&mut bytes).expect("a reply in time");
    number(&bytes[..length])
}

#[track_caller]
fn ask(client: &UdpSocket, n: u32) {
    send(client, n);
    assert_eq!(receive(client), n);
}

/// A process before one backend, and the sockets that it has.
fn one(keys: &str, backend: &Backend) -> (Group, Process) {
    let group = Group::bind("127.0.0.1:0", 2);
    let groups = std::slice::from_ref(&group);
    let process = Process::start(2, groups, Begins::AtOnce, keys, &[backend.address]);
    (group, process)
}

fn next(workers: usize, group: &Group, keys: &str, backend: &Backend) -> Process {
    let groups = std::slice::from_ref(group);
    Process::start(workers, groups, Begins::WhenGiven, keys, &[backend.address])
}

#[test]
fn a_flow_goes_on_in_the_other_process() {
    let backend = Backend::start();
    let (group, old) = one("", &backend);
    let clients: Vec<UdpSocket> = (0..40).map(|_| client(group.address)).collect();
    clients.iter().for_each(|client| ask(client, 1));
    let new = next(2, &group, "", &backend);
    let given = hand_over(&old, &new);
    assert_eq!((given.flows, given.refused), (40, 0));
    wait_until("the old process forgets them", || old.flows() == 0);
    assert_eq!((new.flows(), new.begun()), (40, 0));
    assert_eq!(old.service.process.sessions.count(), 0);
    clients.iter().for_each(|client| ask(client, 2));
    let came = backend.came();
    assert_eq!(came.len(), 40, "each flow has its socket");
    assert!(came.values().all(|numbers| *numbers == [1, 2]));
    assert_eq!(new.flows(), 40);
    for reason in CloseReason::ALL {
        assert_eq!(old.closed(reason), 0, "{reason:?}");
    }
    let active = old.service.pool.backends()[0].active();
    assert_eq!(active, 0, "no lease is left");
    old.stop();
    clients.iter().for_each(|client| ask(client, 3));
    new.stop();
}

/// Streams with a window, so that nothing on the way overflows, through processes with different
/// numbers of workers.
#[test]
fn nothing_is_lost_or_doubled_or_reordered() {
    const CLIENTS: usize = 12;
    const WINDOW: u32 = 32;
    let backend = Backend::start();
    let (group, first) = one("", &backend);
    let (stops, front) = (Arc::new(AtomicBool::new(false)), group.address);
    let streams: Vec<JoinHandle<u32>> = (0..CLIENTS)
        .map(|_| {
            let stops = Arc::clone(&stops);
            thread::spawn(move || {
                let client = client(front);
                let (mut sent, mut received) = (0, 0);
                while !stops.load(SeqCst) || received < sent {
                    if !stops.load(SeqCst) && sent - received < WINDOW {
                        send(&client, sent);
                        sent += 1;
                        continue;
                    }
                    assert_eq!(receive(&client), received);
                    received += 1;
                }
                sent
            })
        })
        .collect();
    wait_until("all have begun", || first.flows() == CLIENTS as u64);
    let mut process = first;
    for workers in [2, 1, 3, 2, 5, 1, 2, 2] {
        let before = backend.count();
        wait_until("the streams go on", || backend.count() > before + 500);
        let next = next(workers, &group, "", &backend);
        let given = hand_over(&process, &next);
        assert_eq!((given.flows, given.refused), (CLIENTS as u64, 0));
        process.stop();
        process = next;
    }
    let before = backend.count();
    wait_until("the streams go on", || backend.count() > before + 500);
    stops.store(true, SeqCst);
    let mut sent: Vec<u32> = streams
        .into_iter()
        .map(|stream| stream.join().expect("all in order"))
        .collect();
    let came = backend.came();
    let mut counts: Vec<u32> = came.values().map(|numbers| numbers.len() as u32).collect();
    for numbers in came.values() {
        assert!((0..).zip(numbers).all(|(n, came)| n == *came));
    }
    sent.sort_unstable();
    counts.sort_unstable();
    assert_eq!(sent, counts, "each client has had one flow");
    assert_eq!((process.flows(), group.drops()), (CLIENTS as u64, 0));
    process.stop();
}

/// Without replies, and from the backend alone.
#[test]
fn one_way_streams_go_on() {
    let sink = Backend::start();
    sink.keep(true);
    let (group, old) = one("", &sink);
    let (stops, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (its, count, front) = (Arc::clone(&stops), Arc::clone(&sent), group.address);
    let received = Arc::clone(&sink.shared);
    let stream = thread::spawn(move || {
        let client = client(front);
        for n in 0.. {
            if its.load(SeqCst) {
                return;
            }
            send(&client, n);
            count.fetch_add(1, SeqCst);
            // Not faster than the sink: what it has not received would fill its buffer.
            while u64::from(n) > received.count.load(SeqCst) as u64 + 500 {
                thread::yield_now();
            }
        }
    });
    wait_until("the stream runs", || sink.count() > 100);
    let new = next(1, &group, "", &sink);
    hand_over(&old, &new);
    old.stop();
    let before = sink.count();
    wait_until("the stream goes on", || sink.count() > before + 100);
    stops.store(true, SeqCst);
    stream.join().expect("no panic");
    wait_until("all has come", || sink.count() as u64 == sent.load(SeqCst));
    let came = sink.came();
    assert_eq!((came.len(), group.drops()), (1, 0));
    assert!(
        (0..)
            .zip(&came.into_values().collect::<Vec<_>>()[0])
            .all(|(n, came)| n == *came)
    );
    new.stop();
}

#[test]
fn a_reply_that_is_owed_ends_its_flow_in_the_other_process() {
    let backend = Backend::start();
    let (group, old) = one("responses = 1", &backend);
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(group.address)).collect();
    backend.keep(true);
    clients.iter().for_each(|client| send(client, 7));
    wait_until("all have come", || backend.count() == 10);
    let new = next(2, &group, "responses = 1", &backend);
    hand_over(&old, &new);
    wait_until("the old process forgets them", || old.flows() == 0);
    assert_eq!(new.flows(), 10);
    backend.keep(false);
    clients
        .iter()
        .for_each(|client| assert_eq!(receive(client), 7));
    wait_until("they are over", || new.flows() == 0);
    assert_eq!(new.closed(CloseReason::Ok), 10);
    old.stop();
    new.stop();
}

#[test]
fn datagrams_of_both_processes_count_for_the_limit_of_a_flow() {
    let backend = Backend::start();
    let (group, old) = one("requests = 3", &backend);
    let client = client(group.address);
    ask(&client, 1);
    ask(&client, 2);
    let new = next(2, &group, "requests = 3", &backend);
    hand_over(&old, &new);
    ask(&client, 3);
    assert_eq!(backend.came().len(), 1);
    ask(&client, 4);
    let came = backend.came();
    let numbers: BTreeSet<Vec<u32>> = came.into_values().collect();
    assert_eq!(numbers, BTreeSet::from([vec![1, 2, 3], vec![4]]));
    old.stop();
    new.stop();
}

#[test]
fn flows_of_single_datagrams_stay_with_their_backends() {
    let backends = [Backend::start(), Backend::start()];
    let addresses = backends.each_ref().map(|backend| backend.address);
    let group = [Group::bind("127.0.0.1:0", 2)];
    let start = |begins| Process::start(2, &group, begins, "per_packet = true", &addresses);
    let old = start(Begins::AtOnce);
    let client = client(group[0].address);
    (0..4).for_each(|n| ask(&client, n));
    assert_eq!(old.flows(), 2);
    let new = start(Begins::WhenGiven);
    hand_over(&old, &new);
    assert_eq!(new.flows(), 2);
    (4..8).for_each(|n| ask(&client, n));
    assert_eq!((new.flows(), new.begun()), (2, 0));
    for backend in &backends {
        let came = backend.came();
        assert_eq!(came.len(), 1);
        assert!(came.values().all(|numbers| numbers.len() == 4));
    }
    old.stop();
    new.stop();
}

#[test]
fn replies_come_from_the_address_that_was_asked() {
    let backend = Backend::start();
    let group = Group::bind("0.0.0.0:0", 2);
    let groups = std::slice::from_ref(&group);
    let old = Process::start(2, groups, Begins::AtOnce, "", &[backend.address]);
    let port = group.address.port();
    // A connected client hears only the address that it asks.
    let clients: Vec<UdpSocket> = (1..20)
        .map(|n| client(SocketAddr::from(([127, 0, 0, n], port))))
        .collect();
    clients.iter().for_each(|client| ask(client, 1));
    backend.keep(true);
    clients.iter().for_each(|client| send(client, 2));
    wait_until("all have come", || backend.count() == 38);
    let new = Process::start(3, groups, Begins::WhenGiven, "", &[backend.address]);
    hand_over(&old, &new);
    old.stop();
    backend.keep(false);
    clients
        .iter()
        .for_each(|client| assert_eq!(receive(client), 2));
    clients.iter().for_each(|client| ask(client, 3));
    new.stop();
}

#[test]
fn several_addresses_of_a_listener_go_together() {
    let backend = Backend::start();
    let groups: Vec<Group> = (0..10).map(|_| Group::bind("127.0.0.1:0", 2)).collect();
    let start = |workers, begins| Process::start(workers, &groups, begins, "", &[backend.address]);
    let old = start(2, Begins::AtOnce);
    let clients: Vec<UdpSocket> = groups.iter().map(|group| client(group.address)).collect();
    clients.iter().for_each(|client| ask(client, 1));
    let new = start(2, Begins::WhenGiven);
    assert_eq!(hand_over(&old, &new).flows, 10);
    old.stop();
    clients.iter().for_each(|client| ask(client, 2));
    assert_eq!(backend.came().len(), 10);
    new.stop();
}

/// As nginx does: a header only in front of the first datagram of a client.
#[test]
fn a_client_that_a_header_has_named_is_known_to_the_other_process() {
    let keys = "accept_proxy = { trust = [\"127.0.0.0/8\"] }\nresponses = 1";
    let backend = Backend::start();
    let (group, old) = one(keys, &backend);
    let client = client(group.address);
    let mut named =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x01\0\x02".to_vec();
    named.extend(1u32.to_le_bytes());
    client.send(&named).expect("sent");
    assert_eq!(receive(&client), 1);
    // The flow has had its reply, so that only the name is left.
    wait_until("the flow is over", || old.flows() == 0);
    let new = next(2, &group, keys, &backend);
    assert_eq!(hand_over(&old, &new).flows, 0);
    old.stop();
    ask(&client, 2);
    new.stop();
}

#[test]
fn a_flow_whose_backend_is_unknown_stays_for_its_replies() {
    let (first, second) = (Backend::start(), Backend::start());
    let (group, old) = one("", &first);
    let client = client(group.address);
    ask(&client, 1);
    first.keep(true);
    send(&client, 2);
    wait_until("it has come", || first.count() == 2);
    let new = next(2, &group, "", &second);
    let given = hand_over(&old, &new);
    assert_eq!((given.flows, given.refused), (1, 1));
    ask(&client, 3);
    assert_eq!((second.count(), new.flows(), old.flows()), (1, 1, 1));
    first.keep(false);
    assert_eq!(receive(&client), 2);
    old.order(|| Order::Drain);
    wait_until("the old flow ends", || old.flows() == 0);
    old.stop();
    ask(&client, 4);
    new.stop();
}

#[test]
fn without_flows_only_new_datagrams_go_to_the_other_process() {
    let backend = Backend::start();
    let (group, old) = one("", &backend);
    let client = client(group.address);
    backend.keep(true);
    send(&client, 1);
    wait_until("it has come", || backend.count() == 1);
    let new = next(2, &group, "", &backend);
    let given = try_hand_over(&old, &new, Scope::SocketsAlone { version: 1 }).expect("handed over");
    assert_eq!((given.flows, given.refused), (0, 1));
    backend.keep(false);
    assert_eq!(receive(&client), 1);
    ask(&client, 2);
    assert_eq!(backend.came().len(), 2, "a flow in each process");
    assert_eq!((new.flows(), old.flows()), (1, 1));
    old.stop();
    new.stop();
}

/// What a new process does instead of taking.
fn answer_with(
    from: &Process,
    answers: usize,
    last: impl FnOnce(&mut Channel) + Send,
) -> Result<(), HandOverError> {
    let (mut ours, theirs) = Channel::pair().expect("a pair of sockets");
    thread::scope(|threads| {
        threads.spawn(move || {
            let mut theirs = Channel::new(theirs);
            let deadline = Instant::now() + PATIENCE;
            for _ in 0..answers {
                theirs.receive(deadline).expect("a batch");
                theirs
                    .send(Kind::UdpTaken, 1, &[], &[], deadline)
                    .expect("sent");
            }
            theirs.receive(deadline).expect("a batch");
            last(&mut theirs);
        });
        from.flow_sender(Scope::Flows { version: 1 })
            .send_flows(&mut ours)
            .map(drop)
    })
}

#[test]
fn the_old_process_goes_on_when_the_new_one_fails() {
    let backend = Backend::start();
    let (group, old) = one("", &backend);
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(group.address)).collect();
    clients.iter().for_each(|client| ask(client, 0));
    let far = || Instant::now() + PATIENCE;
    let mut n = 0;
    let mut goes_on = |expected: u64| {
        n += 1;
        // While datagrams wait, all are there in the end.
        clients.iter().for_each(|client| ask(client, n));
        assert_eq!(old.flows(), expected);
    };
    // It dies while flows are copied, and while they stand still.
    for answers in [0, 1] {
        let result = answer_with(&old, answers, |_| {});
        assert!(
            matches!(result, Err(HandOverError::Channel(_))),
            "{result:?}"
        );
        goes_on(20);
    }
    let result = answer_with(&old, 1, |channel| {
        channel
            .send(Kind::UdpTaken, 1, b"garbage", &[], far())
            .expect("sent");
    });
    assert!(
        matches!(result, Err(HandOverError::Malformed(_))),
        "{result:?}"
    );
    goes_on(20);
    let result = answer_with(&old, 1, |channel| {
        channel.send(Kind::End, 1, &[], &[], far()).expect("sent");
    });
    assert!(
        matches!(result, Err(HandOverError::Unexpected(Kind::End))),
        "{result:?}"
    );
    goes_on(20);
    assert_eq!(backend.came().len(), 20, "all flows are the same");
    // It dies with the flows of one worker: their clients begin anew here.
    let result = answer_with(&old, 2, |_| {});
    assert!(
        matches!(result, Err(HandOverError::Channel(_))),
        "{result:?}"
    );
    goes_on(20);
    assert!(backend.came().len() > 20);
    // After all that it can be replaced.
    let new = next(2, &group, "", &backend);
    assert_eq!(hand_over(&old, &new).flows, 20);
    old.stop();
    clients.iter().for_each(|client| ask(client, 99));
    new.stop();
}

#[test]
fn a_batch_that_is_none_changes_nothing() {
    let backend = Backend::start();
    let (group, old) = one("", &backend);
    let new = next(2, &group, "", &backend);
    let mut receiver = new.receiver();
    let message = |kind, body: &[u8]| Message {
        kind,
        version: 1,
        serial: 0,
        body: body.to_vec(),
        descriptors: Vec::new(),
        is_short: false,
    };
    let other = receiver.receive(message(Kind::Sessions, b""));
    assert!(matches!(other, Err(HandOverError::Unexpected(_))));
    let garbage = receiver.receive(message(Kind::UdpFlows, b"garbage"));
    assert!(matches!(garbage, Err(HandOverError::Malformed(_))));
    let late = crate::handover::flows::FlowBatch {
        late: vec![crate::handover::flows::LateSocket {
            listener: "l".to_owned(),
            until_millis: 1,
        }],
        ..Default::default()
    };
    let missing = receiver.receive(message(Kind::UdpFlows, &late.write()));
    assert!(matches!(missing, Err(HandOverError::Descriptors)));
    let client = client(group.address);
    ask(&client, 1);
    assert_eq!((old.flows(), new.flows()), (1, 0));
    old.stop();
    new.stop();
}

/// Otherwise its port could be that of another flow, and a late reply would reach that client.
#[test]
fn sockets_that_wait_for_late_replies_go_too() {
    let backend = Backend::start();
    backend.keep(true);
    let (group, old) = one("idle_timeout = \"50ms\"", &backend);
    send(&client(group.address), 1);
    wait_until("it has come", || backend.count() == 1);
    wait_until("the flow is over", || old.flows() == 0);
    let new = next(1, &group, "", &backend);
    hand_over(&old, &new);
    old.stop();
    let port = backend.came().into_keys().next().expect("a flow").port();
    let is_free = || UdpSocket::bind((V4, port)).is_ok();
    assert!(!is_free(), "the new process has it");
    wait_until("it is closed in time", is_free);
    new.stop();
}

#[test]
fn a_flow_ends_in_the_other_process_when_it_has_been_idle_for_long_enough() {
    let backend = Backend::start();
    let keys = "idle_timeout = \"2s\"";
    let (group, old) = one(keys, &backend);
    let client = client(group.address);
    ask(&client, 1);
    let active = Instant::now();
    thread::sleep(Duration::from_millis(1_200));
    let new = next(1, &group, keys, &backend);
    hand_over(&old, &new);
    old.stop();
    wait_until("it is over", || new.closed(CloseReason::IdleTimeout) == 1);
    let after = active.elapsed();
    // As long as if it had stayed, and not for another two seconds.
    assert!(after >= Duration::from_millis(1_990), "{after:?}");
    assert!(after < Duration::from_millis(3_150), "{after:?}");
    new.stop();
}
