//! What listens for the admin side.

use crate::{
    admin::{self, AdminListener, Renderer},
    control::{
        State,
        upgrade::{hand_over::AdminSocket, take_over::Predecessor},
    },
    plan,
    runtime::net::{SocketFile, has_interface},
    sys::blocking,
};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A folder that hangs is not waited for at the end.
const PATIENCE: Duration = Duration::from_millis(100);

/// Its sockets are kept, so that they can be served again after an upgrade that failed.
#[derive(Default)]
pub(super) struct Doors {
    doors: Vec<Door>,
    /// Of the unix socket. It stays until the end: an operator may want to see how the last
    /// sessions go.
    file: Option<SocketFile>,
    /// The file of the old process until this one has taken over.
    handed_file: Option<PathBuf>,
    renderer: Option<Arc<Renderer>>,
}

struct Door {
    /// As configured.
    configured: String,
    /// Where it really listens.
    address: String,
    is_unix: bool,
    socket: OwnedFd,
}

impl Doors {
    /// `predecessor`: its sockets are used where the plan has their addresses.
    pub(super) async fn bind(
        plan: Option<&plan::Admin>,
        mut predecessor: Option<&mut Predecessor>,
    ) -> Result<Self, String> {
        let mut doors = Self::default();
        let failed = |why: String| format!("error: admin: {why}\n");
        let mut handed = |configured: &str| predecessor.as_mut()?.take_door(configured);
        if let Some(listen) = plan.and_then(|admin| admin.listen) {
            let configured = listen.to_string();
            let socket = match handed(&configured) {
                Some(door) => std::net::TcpListener::from(door.socket),
                None => bind_tcp(listen).await.map_err(failed)?,
            };
            let address = socket.local_addr().unwrap_or(listen).to_string();
            doors.doors.push(Door {
                configured,
                address,
                is_unix: false,
                socket: socket.into(),
            });
        }
        if let Some(path) = plan.and_then(|admin| admin.socket.as_deref()) {
            let address = format!("unix:{}", path.display());
            let socket = match handed(&address) {
                Some(door) => {
                    doors.handed_file = door.owns_file.then(|| path.to_owned());
                    door.socket
                }
                None => doors.bind_unix(path).await.map_err(failed)?,
            };
            doors.doors.push(Door {
                configured: address.clone(),
                address,
                is_unix: true,
                socket,
            });
        }
        Ok(doors)
    }

    async fn bind_unix(&mut self, path: &Path) -> Result<OwnedFd, String> {
        let (listener, file) = admin::listen(path).await.map_err(|e| e.to_string())?;
        self.file = Some(file);
        let listener = listener.into_std().map_err(|e| e.to_string())?;
        Ok(listener.into())
    }

    /// The file is removed by this process from now on.
    pub(super) fn adopt_file(&mut self) {
        if let Some(path) = self.handed_file.take() {
            self.file = Some(SocketFile::adopt(&path));
        }
    }

    /// Answers at all of them.
    pub(super) fn open(&mut self, state: &Arc<State>) -> Result<(), String> {
        for door in &self.doors {
            let renderer = match &self.renderer {
                Some(renderer) => Arc::clone(renderer),
                None => {
                    let started = Renderer::start(state)
                        .map_err(|e| format!("error: admin: cannot start a thread: {e}\n"))?;
                    Arc::clone(self.renderer.insert(Arc::new(started)))
                }
            };
            let listener = door
                .listener()
                .map_err(|e| format!("error: admin: cannot listen on {}: {e}\n", door.address))?;
            tracing::info!(address = door.address, "admin");
            let served = admin::serve(listener, Arc::clone(state), renderer);
            state.spawn_door(served);
        }
        Ok(())
    }

    /// For another process.
    pub(super) fn copies(&self) -> io::Result<Vec<AdminSocket>> {
        let copies = self.doors.iter().map(|door| {
            Ok(AdminSocket {
                configured: door.configured.clone(),
                owns_file: door.is_unix && self.file.is_some(),
                socket: door.socket.try_clone()?,
            })
        });
        copies.collect()
    }

    /// Keeps no socket for an upgrade: a process that stops gives its addresses to another one, and
    /// each of them is free when the last copy is closed. What is served goes on.
    pub(super) fn drop_sockets(&mut self) {
        self.doors.clear();
    }

    /// `has_successor`: then the file at the path is that of another process.
    pub(super) async fn close(self, has_successor: bool) {
        match self.file {
            Some(file) if has_successor => file.keep(),
            file => drop(blocking::call(PATIENCE, move || drop(file)).await),
        }
    }
}

impl Door {
    /// It shares the queue.
    fn listener(&self) -> io::Result<AdminListener> {
        let socket = self.socket.try_clone()?;
        Ok(match self.is_unix {
            true => AdminListener::Unix(tokio::net::UnixListener::from_std(socket.into())?),
            false => AdminListener::Tcp(tokio::net::TcpListener::from_std(socket.into())?),
        })
    }
}

async fn bind_tcp(listen: std::net::SocketAddr) -> Result<std::net::TcpListener, String> {
    if !has_interface(listen) {
        return Err("`listen`: this machine has no such network interface".to_owned());
    }
    let failed = |e: io::Error| format!("cannot listen on {listen}: {e}");
    let bound = tokio::net::TcpListener::bind(listen).await;
    bound
        .and_then(|listener| listener.into_std())
        .map_err(failed)
}
