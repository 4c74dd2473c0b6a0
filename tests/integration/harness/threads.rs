//! Single threads of the program under test.

use super::proc::{Proc, command};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The number of the thread with this name.
#[track_caller]
pub(crate) fn thread_id(program: &Proc, name: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", program.id())).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let is_named = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let task = tasks.find(is_named).expect("the thread");
    task.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Stops the loop of one thread at its next wait, until what is returned is dropped.
#[track_caller]
pub(crate) fn stall(program: &Proc, dir: &Path, thread: &str) -> Proc {
    let line = "strace -qq -o /dev/null -e trace=/^epoll_p?wait2?$ \
                -e inject=/^epoll_p?wait2?$:delay_enter=600000000 -p";
    let mut strace = command(line);
    strace.arg(thread_id(program, thread));
    Proc::start("strace", dir, strace)
}
