//! The datagram workers of a process, with one listener.

use crate::{
    config,
    handover::{
        channel::{Channel, ChannelError},
        message::Kind,
    },
    plan::{self, reason::CloseReason},
    proxy::udp::{
        Binding, FlowReceiver, FlowSender, FlowsSent, HandOverError, ListenerId, Order,
        OwnAddresses, PeerWorkers, Port, PortUse, PortUsers, Scope, SentListener, Worker,
        spawn_worker, worker_of,
    },
    runtime::{mailbox::Mailbox, time},
    session::{
        bandwidth::BandwidthLimits,
        registry::{Descriptors, Sessions},
        service::{self, Notices, ProcessContext, Service},
        sockets::FlowSockets,
    },
    sys::datagram,
    telemetry::metrics::{Exporter, ListenerMetrics},
    upstream::pool::Pool,
};
use socket2::{Domain, Socket, Type};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use tokio_util::task::TaskTracker;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The listening sockets of one address, in their order.
pub(super) struct Group {
    pub(super) address: SocketAddr,
    sockets: Vec<UdpSocket>,
}

impl Group {
    pub(super) fn bind(address: &str, count: usize) -> Self {
        let mut address: SocketAddr = address.parse().expect("an address");
        let mut sockets = Vec::new();
        for _ in 0..count {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::DGRAM.nonblocking(),
                None,
            )
            .expect("a socket");
            socket.set_reuse_port(true).expect("SO_REUSEPORT");
            socket.bind(&address.into()).expect("a free port");
            datagram::receive_buffer(&socket, 4 << 20);
            if address.ip().is_unspecified() {
                datagram::ask_for_destination(&socket, false).expect("IP_PKTINFO");
            }
            let socket = UdpSocket::from(socket);
            address = socket.local_addr().expect("an address");
            sockets.push(socket);
        }
        Self { address, sockets }
    }

    /// Datagrams that the kernel has dropped.
    pub(super) fn drops(&self) -> u64 {
        let drops = self.sockets.iter().map(datagram::drops);
        drops.map(|drops| drops.expect("a count")).sum()
    }
}

pub(super) struct Process {
    workers: Vec<Worker>,
    id: ListenerId,
    addresses: Arc<[SocketAddr]>,
    pub(super) service: Arc<Service>,
    tasks: TaskTracker,
    /// As long as the addresses are not to be closed.
    _uses: Vec<PortUse>,
}

/// Whether a process begins to receive at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    AtOnce,
    WhenGiven,
}

impl Process {
    /// `keys`: of the listener.
    pub(super) fn start(
        workers: usize,
        groups: &[Group],
        begins: Begins,
        keys: &str,
        backends: &[SocketAddr],
    ) -> Self {
        let (service, flow_sockets) = serve(workers, keys, backends);
        static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
        let id = ListenerId(NEXT.fetch_add(1, Relaxed));
        let tasks = TaskTracker::new();
        let own = Arc::new(OwnAddresses::new([], |_| false));
        let peers = Arc::<PeerWorkers>::default();
        let mut ports: Vec<Vec<Port>> = (0..workers).map(|_| Vec::new()).collect();
        let mut uses = Vec::new();
        for group in groups {
            let users = Arc::<PortUsers>::default();
            uses.extend(users.take());
            for (index, socket) in (0..).zip(&group.sockets) {
                ports[worker_of(index, workers)].push(Port {
                    socket: socket.try_clone().expect("a copy"),
                    address: group.address,
                    index,
                    is_held: begins == Begins::WhenGiven,
                    users: Arc::clone(&users),
                    open: tasks.token(),
                });
            }
        }
        let workers = (0..workers)
            .map(|n| spawn_worker(n, n, &flow_sockets, time::epoch()).expect("a thread"));
        let workers: Vec<Worker> = workers.collect();
        for (worker, sockets) in workers.iter().zip(ports) {
            worker.send(Order::Listen(Box::new(Binding {
                id,
                service: Arc::clone(&service),
                sockets,
                peers: Arc::clone(&peers),
                own: Arc::clone(&own),
                alive: tasks.token(),
            })));
        }
        Self {
            workers,
            id,
            addresses: groups.iter().map(|group| group.address).collect(),
            service,
            tasks,
            _uses: uses,
        }
    }

    fn mailboxes(&self) -> Vec<Arc<Mailbox<Order>>> {
        self.workers
            .iter()
            .map(|w| Arc::clone(w.mailbox()))
            .collect()
    }

    pub(super) fn flow_sender(&self, scope: Scope) -> FlowSender {
        let listener = SentListener {
            id: self.id,
            addresses: Arc::clone(&self.addresses),
        };
        FlowSender::new(self.mailboxes(), vec![listener], scope, PATIENCE)
    }

    pub(super) fn receiver(&self) -> FlowReceiver {
        let listener = ("l".to_owned(), self.id, self.addresses.to_vec());
        FlowReceiver::new(self.mailboxes(), [listener])
    }

    pub(super) fn metrics(&self) -> &ListenerMetrics {
        &self.service.metrics
    }

    /// Flows that live.
    pub(super) fn flows(&self) -> u64 {
        self.metrics().active()
    }

    pub(super) fn closed(&self, reason: CloseReason) -> u64 {
        let counts = self.metrics().counts.all();
        counts
            .map(|counts| counts.closed[reason as usize].get())
            .sum()
    }

    pub(super) fn begun(&self) -> u64 {
        let counts = self.metrics().counts.all();
        counts.map(|counts| counts.connections.get()).sum()
    }

    /// Sends this order to all workers.
    pub(super) fn order(&self, order: impl Fn() -> Order) {
        self.workers.iter().for_each(|worker| worker.send(order()));
    }

    pub(super) fn stop(self) {
        self.workers.into_iter().for_each(Worker::join);
        self.tasks.close();
    }
}

fn serve(workers: usize, keys: &str, backends: &[SocketAddr]) -> (Arc<Service>, Arc<FlowSockets>) {
    let backends: Vec<String> = backends.iter().map(|b| format!("\"{b}\"")).collect();
    let text = format!(
        "[listeners.l]\nbind = \"127.0.0.1:1\"\nprotocol = \"udp\"\nupstream = \"u\"\n{keys}\n\
         [upstreams.u]\nbackends = [{}]\n",
        backends.join(", ")
    );
    let plan = config::parse(&text, "test.toml");
    let plan = plan.unwrap_or_else(|problems| panic!("{problems}"));
    let (exporter, now) = (Exporter::new(workers), Instant::now());
    let upstream = &plan.upstreams[0];
    let of_all = exporter.upstream("u");
    let addresses = upstream.backends.iter().map(|backend| {
        let address = backend.text.parse().expect("an address");
        vec![plan::Addr::Tcp(address)]
    });
    let addresses: Vec<_> = addresses.collect();
    let metrics = |backend: &plan::Backend| exporter.backend(&of_all, &backend.text, None);
    let pool = Arc::new(Pool::new(&of_all, upstream, metrics, &addresses, now));
    let most = 20_000;
    let descriptors = Arc::new(Descriptors::new(0, most, 0));
    let sessions = Sessions::new(workers, 0, most, &descriptors, time::epoch());
    let listener = plan.listeners[0].clone();
    let metrics = exporter.listener("l");
    let service = Service {
        bandwidth: Arc::new(BandwidthLimits::new(Arc::clone(&metrics))),
        metrics,
        per_source: Arc::default(),
        rates: Arc::default(),
        origin: service::origin(&listener, &pool),
        plan: plan::Listener {
            max_connections: most,
            ..listener
        },
        pool,
        process: Arc::new(ProcessContext {
            metrics: Arc::new(exporter.process()),
            sessions: Arc::new(sessions),
            access_logs: Arc::default(),
        }),
        access_log: None,
        send_proxy: upstream.send_proxy,
        send_proxy_on: upstream.send_proxy_on,
        notices: Arc::new(Notices::new(now)),
        accepting: Arc::default(),
        intake: Arc::default(),
    };
    (Arc::new(service), FlowSockets::new(most, &descriptors))
}

/// Gives all flows of one process to another, over a channel.
pub(super) fn hand_over(from: &Process, to: &Process) -> FlowsSent {
    try_hand_over(from, to, Scope::Flows { version: 1 }).expect("handed over")
}

pub(super) fn try_hand_over(
    from: &Process,
    to: &Process,
    scope: Scope,
) -> Result<FlowsSent, HandOverError> {
    let (mut ours, theirs) = Channel::pair().expect("a pair of sockets");
    let mut receiver = to.receiver();
    thread::scope(|threads| {
        let taking = threads.spawn(move || {
            let mut theirs = Channel::new(theirs);
            let deadline = Instant::now() + PATIENCE;
            loop {
                let message = match theirs.receive(deadline) {
                    Ok(message) => message,
                    Err(ChannelError::Closed) => return,
                    Err(error) => panic!("{error}"),
                };
                let answer = receiver.receive(message).expect("a batch");
                let sent = theirs.send(Kind::UdpTaken, 1, &answer, &[], deadline);
                sent.expect("an answer");
            }
        });
        let given = from.flow_sender(scope).send_flows(&mut ours);
        drop(ours);
        taking.join().expect("no panic");
        given
    })
}

#[track_caller]
pub(super) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}
