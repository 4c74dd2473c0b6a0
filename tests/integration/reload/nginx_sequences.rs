//! What nginx's own tests do around a reload (worker_shutdown_timeout_stream.t), with what tembuku
//! does. docs/reload.md lists the differences.

use super::setup;
use crate::harness::net::{echo, session};

/// nginx ends the sessions of its old workers after `worker_shutdown_timeout`, or keeps those
/// workers.
#[test]
fn no_reload_ends_a_session_of_a_listener_that_stays() {
    let setup = setup();
    let (mut held, _) = session(setup.front).unwrap();
    setup.replace("workers = 2", "workers = 2\ndrain_timeout = \"10ms\"");
    setup.reload();
    for _ in 0..3 {
        assert!(setup.reload().starts_with("no changes, "));
    }
    echo(&mut held, "EHLO example.com").unwrap();
    assert_eq!(setup.tembuku.metric("sessions_closed_total", &[]), 0.0);
}
