//! The next process, which may start while this one drains: it asks for the addresses, and gets
//! them.

use crate::{
    control::State,
    sys::{mutex::Mutex, task::boxed},
};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long it may take to give up the addresses.
const PATIENCE: Duration = Duration::from_secs(4);
/// The same for those of the admin side.
const CLOSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(in crate::control) struct Successor {
    /// It has asked.
    expected: CancellationToken,
    /// Every address can be bound.
    released: CancellationToken,
    /// What listens for the admin side.
    admin_tasks: TaskTracker,
    /// Ends the tasks that answer now.
    admin_end: Mutex<CancellationToken>,
}

impl Successor {
    pub(super) fn is_expected(&self) -> bool {
        self.expected.is_cancelled()
    }

    pub(in crate::control) async fn wait(&self) {
        self.expected.cancelled().await;
    }

    /// Waits until the admin side has closed its addresses, the last that are given up.
    pub(in crate::control) async fn finish_release(&self) {
        self.admin_tasks.close();
        if tokio::time::timeout(CLOSE, self.admin_tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("admin addresses were not closed in time");
        }
        self.released.cancel();
    }
}

impl State {
    /// Gives up every address, for another process that starts. Sessions go on, UDP flows end.
    /// Returns false where no stop was requested, or it takes too long.
    pub async fn release(&self) -> bool {
        if !self.node.is_leaving.load(Relaxed) {
            return false;
        }
        let successor = &self.node.successor;
        successor.expected.cancel();
        let released = successor.released.cancelled();
        tokio::time::timeout(PATIENCE, released).await.is_ok()
    }

    /// Whether another process has, or is to have, the addresses.
    pub fn has_successor(&self) -> bool {
        self.node.successor.is_expected()
    }

    /// Runs what listens at one address of the admin side, until all of them are to be given up, or
    /// this one is.
    pub fn spawn_door(
        &self,
        serve: impl Future<Output = ()> + Send + 'static,
        own_end: CancellationToken,
    ) -> JoinHandle<()> {
        let successor = &self.node.successor;
        let expected = successor.expected.clone();
        let end = successor.admin_end.lock().clone();
        successor.admin_tasks.spawn(boxed(async move {
            tokio::select! {
                () = serve => {}
                () = expected.cancelled() => {}
                () = end.cancelled() => {}
                () = own_end.cancelled() => {}
            }
        }))
    }

    /// Answers what has been asked on the admin side, for so long; nothing more can be asked.
    pub async fn finish_answers(&self, limit: Duration) {
        self.ending.cancel();
        self.close_doors().await;
        self.admin_connections.close();
        let _ = tokio::time::timeout(limit, self.admin_connections.wait()).await;
    }

    /// Listens for the admin side no more; tasks may be spawned again.
    pub(in crate::control) async fn close_doors(&self) {
        let Successor {
            admin_tasks,
            admin_end,
            ..
        } = &self.node.successor;
        std::mem::take(&mut *admin_end.lock()).cancel();
        admin_tasks.close();
        if tokio::time::timeout(CLOSE, admin_tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("admin addresses were not closed in time");
        }
        admin_tasks.reopen();
    }
}
