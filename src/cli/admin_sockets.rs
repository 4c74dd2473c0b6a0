//! What listens for the admin side.

use crate::{
    admin::{self, AdminListener, Renderer},
    control::{
        State,
        upgrade::{hand_over::AdminSocket, take_over::Predecessor},
    },
    plan,
    runtime::net::{SocketFile, has_interface},
    sys::{blocking, limits},
};
use socket2::{Domain, SockRef, Socket, Type};
use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const BACKLOG: i32 = 1024;
/// A folder that hangs is not waited for at the end.
const PATIENCE: Duration = Duration::from_millis(100);

/// Its sockets are kept, so that they can be served again after an upgrade that failed.
#[derive(Default)]
pub(super) struct AdminSockets {
    sockets: Vec<BoundSocket>,
    /// Of the unix socket. It stays until the end: an operator may want to see how the last
    /// sessions go.
    file: Option<SocketFile>,
    /// The file of the old process until this one has taken over.
    handed_file: Option<PathBuf>,
    renderer: Option<Arc<Renderer>>,
}

struct BoundSocket {
    /// As configured.
    configured: String,
    /// Where it really listens.
    address: String,
    is_unix: bool,
    socket: OwnedFd,
    /// What answers there.
    serving: Option<Serving>,
}

struct Serving {
    end: CancellationToken,
    task: JoinHandle<()>,
}

/// What a plan has at other addresses than the plan before. Dropped, nothing has changed.
pub(super) struct NewAdminSockets {
    sockets: Vec<BoundSocket>,
    file: Option<SocketFile>,
    /// The addresses of the plan, as configured.
    configured: Vec<String>,
}

impl AdminSockets {
    /// `predecessor`: its sockets are used where the plan has their addresses.
    pub(super) async fn bind(
        plan: Option<&plan::Admin>,
        mut predecessor: Option<&mut Predecessor>,
    ) -> Result<Self, String> {
        let mut sockets = Self::default();
        let mut handed = |configured: &str| predecessor.as_mut()?.take_admin_socket(configured);
        if let Some(listen) = listen_of(plan)
            && let Some(bound) = handed(&listen.to_string())
        {
            let socket = std::net::TcpListener::from(bound.socket);
            sockets.sockets.push(BoundSocket::tcp(listen, socket));
        }
        if let Some(path) = socket_of(plan)
            && let Some(bound) = handed(&unix_address(path))
        {
            sockets.handed_file = bound.owns_file.then(|| path.to_owned());
            sockets.sockets.push(BoundSocket::unix(path, bound.socket));
        }
        let new = sockets.bind_missing(plan, &[]).await;
        let new = new.map_err(|why| format!("error: admin: {why}\n"))?;
        sockets.sockets.extend(new.sockets);
        sockets.file = new.file;
        Ok(sockets)
    }

    /// Lets listeners of this process bind the TCP addresses that a plan does not have any more,
    /// which are returned, until [`Self::end_sharing`].
    pub(super) fn share_leaving(&self, plan: Option<&plan::Admin>) -> Vec<SocketAddr> {
        let listen = listen_of(plan).map(|listen| listen.to_string());
        let is_leaving = |b: &&BoundSocket| !b.is_unix && Some(&b.configured) != listen.as_ref();
        let leaving = self.sockets.iter().filter(is_leaving);
        let shared = leaving.filter_map(|bound| {
            let socket = SockRef::from(&bound.socket);
            socket.set_reuse_port(true).ok()?;
            socket.local_addr().ok()?.as_socket()
        });
        shared.collect()
    }

    pub(super) fn end_sharing(&self) {
        for bound in self.sockets.iter().filter(|bound| !bound.is_unix) {
            // Only binds that are yet to come ask for it.
            let _ = SockRef::from(&bound.socket).set_reuse_port(false);
        }
    }

    /// Binds the addresses of a plan that there are no sockets of yet. `leaving`: what listeners
    /// have still, and leave by the same plan.
    pub(super) async fn bind_missing(
        &self,
        plan: Option<&plan::Admin>,
        leaving: &[SocketAddr],
    ) -> Result<NewAdminSockets, String> {
        let mut new = NewAdminSockets {
            sockets: Vec::new(),
            file: None,
            configured: Vec::new(),
        };
        let has = |configured: &str| self.sockets.iter().any(|d| d.configured == configured);
        if let Some(listen) = listen_of(plan) {
            let configured = listen.to_string();
            if !has(&configured) {
                new.sockets
                    .push(BoundSocket::tcp(listen, self.bind_tcp(listen, leaving)?));
            }
            new.configured.push(configured);
        }
        if let Some(path) = socket_of(plan) {
            let configured = unix_address(path);
            if !has(&configured) {
                let (listener, file) = admin::listen(path).await.map_err(|e| e.to_string())?;
                new.file = Some(file);
                let listener = listener.into_std().map_err(|e| e.to_string())?;
                new.sockets.push(BoundSocket::unix(path, listener.into()));
            }
            new.configured.push(configured);
        }
        Ok(new)
    }

    /// Own sockets are not in the way, as those of a wildcard address would be.
    fn bind_tcp(
        &self,
        listen: SocketAddr,
        leaving: &[SocketAddr],
    ) -> Result<std::net::TcpListener, String> {
        if !has_interface(listen) {
            return Err("`listen`: this machine has no such network interface".to_owned());
        }
        let bound = bind_tcp(listen, Sharing::No);
        let has_port = |bound: &BoundSocket| {
            let own = SockRef::from(&bound.socket).local_addr();
            let own = own.ok().and_then(|own| own.as_socket());
            own.is_some_and(|own| own.port() == listen.port())
        };
        let bound = bound.or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse if leaving.iter().any(|own| own.port() == listen.port()) => {
                bind_tcp(listen, Sharing::WithListener)
            }
            io::ErrorKind::AddrInUse if self.sockets.iter().any(has_port) => {
                self.bind_beside_own(listen)
            }
            _ => Err(error),
        });
        bound.map_err(|error| {
            let shortage = limits::describe_shortage(&error);
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; another process or a listener has it",
                _ => &shortage,
            };
            format!("cannot listen on {listen}: {error}{hint}")
        })
    }

    fn bind_beside_own(&self, listen: SocketAddr) -> io::Result<std::net::TcpListener> {
        let own = self.sockets.iter().filter(|bound| !bound.is_unix);
        let own: Vec<SockRef<'_>> = own.map(|bound| SockRef::from(&bound.socket)).collect();
        let share = |is_shared| {
            let mut own = own.iter();
            own.try_for_each(|socket| socket.set_reuse_port(is_shared))
        };
        // For this bind alone: no other process is to share the address.
        share(true)?;
        let bound = bind_tcp(listen, Sharing::WithOwn);
        share(false)?;
        bound
    }

    /// Answers at the addresses of another plan, and at no other ones. What has been asked at
    /// others is answered.
    pub(super) async fn change(
        &mut self,
        new: NewAdminSockets,
        state: &Arc<State>,
    ) -> Result<(), String> {
        let NewAdminSockets {
            sockets,
            file,
            configured,
        } = new;
        let is_gone = |bound: &mut BoundSocket| !configured.contains(&bound.configured);
        let mut gone: Vec<BoundSocket> = self.sockets.extract_if(.., is_gone).collect();
        let has_left = gone.iter().any(|bound| bound.is_unix);
        let left = self.file.take_if(|_| has_left);
        self.file = self.file.take().or(file);
        self.sockets.extend(sockets);
        let opened = self.open(state);
        for bound in &mut gone {
            tracing::info!(address = bound.address, "admin address closed");
            if let Some(serving) = bound.serving.take() {
                serving.end.cancel();
                let _ = tokio::time::timeout(PATIENCE, serving.task).await;
            }
        }
        let _ = blocking::call(PATIENCE, move || drop(left)).await;
        opened
    }

    /// The file is removed by this process from now on.
    pub(super) fn adopt_file(&mut self) {
        if let Some(path) = self.handed_file.take() {
            self.file = Some(SocketFile::adopt(&path));
        }
    }

    /// Answers at all of them.
    pub(super) fn open(&mut self, state: &Arc<State>) -> Result<(), String> {
        for bound in self.sockets.iter_mut().filter(|bound| !bound.is_served()) {
            let renderer = match &self.renderer {
                Some(renderer) => Arc::clone(renderer),
                None => {
                    let started = Renderer::start(state).map_err(|e| {
                        let way_out = limits::describe_shortage(&e);
                        format!("error: admin: cannot start a thread: {e}{way_out}\n")
                    })?;
                    Arc::clone(self.renderer.insert(Arc::new(started)))
                }
            };
            let listener = bound
                .listener()
                .map_err(|e| format!("error: admin: cannot listen on {}: {e}\n", bound.address))?;
            tracing::info!(address = bound.address, "admin");
            let served = admin::serve(listener, Arc::clone(state), renderer);
            let end = CancellationToken::new();
            let task = state.spawn_door(served, end.clone());
            bound.serving = Some(Serving { end, task });
        }
        Ok(())
    }

    /// For another process.
    pub(super) fn copies(&self) -> io::Result<Vec<AdminSocket>> {
        let copies = self.sockets.iter().map(|bound| {
            Ok(AdminSocket {
                configured: bound.configured.clone(),
                owns_file: bound.is_unix && self.file.is_some(),
                socket: bound.socket.try_clone()?,
            })
        });
        copies.collect()
    }

    /// Keeps no socket for an upgrade: a process that stops gives its addresses to another one, and
    /// each of them is free when the last copy is closed. What is served goes on.
    pub(super) fn drop_sockets(&mut self) {
        self.sockets.clear();
    }

    /// `has_successor`: then the file at the path is that of another process.
    pub(super) async fn close(self, has_successor: bool) {
        match self.file {
            Some(file) if has_successor => file.keep(),
            file => drop(blocking::call(PATIENCE, move || drop(file)).await),
        }
    }
}

impl NewAdminSockets {
    /// The files of its sockets are removed.
    pub(super) async fn discard(self) {
        let _ = blocking::call(PATIENCE, move || drop(self.file)).await;
    }
}

impl BoundSocket {
    fn tcp(listen: SocketAddr, socket: std::net::TcpListener) -> Self {
        Self {
            configured: listen.to_string(),
            address: socket.local_addr().unwrap_or(listen).to_string(),
            is_unix: false,
            socket: socket.into(),
            serving: None,
        }
    }

    fn unix(path: &Path, socket: OwnedFd) -> Self {
        Self {
            configured: unix_address(path),
            address: unix_address(path),
            is_unix: true,
            socket,
            serving: None,
        }
    }

    fn is_served(&self) -> bool {
        self.serving.as_ref().is_some_and(|s| !s.task.is_finished())
    }

    /// It shares the queue.
    fn listener(&self) -> io::Result<AdminListener> {
        let socket = self.socket.try_clone()?;
        Ok(match self.is_unix {
            true => AdminListener::Unix(tokio::net::UnixListener::from_std(socket.into())?),
            false => {
                SockRef::from(&socket).listen(BACKLOG)?;
                AdminListener::Tcp(tokio::net::TcpListener::from_std(socket.into())?)
            }
        })
    }
}

fn listen_of(plan: Option<&plan::Admin>) -> Option<SocketAddr> {
    plan.and_then(|admin| admin.listen)
}

fn socket_of(plan: Option<&plan::Admin>) -> Option<&Path> {
    plan.and_then(|admin| admin.socket.as_deref())
}

fn unix_address(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    No,
    /// With sockets of this process that allow it.
    WithOwn,
    /// With those of a listener, which allow it. It listens when they do not any more: a client of
    /// the listener would reach it otherwise.
    WithListener,
}

fn bind_tcp(listen: SocketAddr, sharing: Sharing) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::STREAM.nonblocking(),
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing != Sharing::No)?;
    socket.bind(&listen.into())?;
    if sharing != Sharing::WithListener {
        socket.listen(BACKLOG)?;
    }
    socket.set_reuse_port(false)?;
    Ok(socket.into())
}
