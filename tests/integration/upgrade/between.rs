//! Stands between the old and the new process of an upgrade, passes their messages on, and does
//! something at one of them: kills or stops one of both, or says something else.

use super::Succession;
use crate::harness::{
    proc::{command, run_ok},
    secs,
    tembuku::binary,
    wait_until,
};
use rustix::{
    net::{SendFlags, Shutdown, send, shutdown},
    process::{Pid, Signal, getppid, kill_process},
};
use std::{
    env, fs,
    io::stdin,
    os::fd::AsFd as _,
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tembuku::internals::handover::{
    channel::{Channel, ChannelError},
    message::Kind,
};

/// What it does, and where: `ACTION at KIND NUMBER`.
const BEHAVIOUR: &str = "TEMBUKU_TEST_BETWEEN";
/// The arguments of the new process.
const ARGUMENTS: &str = "TEMBUKU_TEST_ARGUMENTS";

/// For any message: the tests wait, and not this.
const LONG: Duration = Duration::from_secs(300);

/// A program for `tembuku upgrade --binary` that stands between. It leaves a file `done` where it
/// has done what it is to do, with the number of the new process.
pub(crate) fn program(tembuku: &Succession, behaviour: &str) -> PathBuf {
    let folder = tembuku.first.dir.path();
    let _ = fs::remove_file(folder.join("done"));
    let script = format!(
        "#!/bin/sh\ncase $1 in check|handover-formats) exec {binary} \"$@\";; esac\n\
         export {BEHAVIOUR}='{behaviour}' {ARGUMENTS}=\"$*\"\n\
         exec {} --exact --ignored --nocapture --test-threads 1 upgrade::between::run_between \
         >/dev/null\n",
        env::current_exe().unwrap().display(),
        binary = binary().display(),
    );
    let script = tembuku.first.dir.write("between", &script);
    let mut chmod = command("chmod 755");
    chmod.arg(&script);
    run_ok(secs(5), chmod);
    script
}

/// The number of the new process at which something was done.
pub(crate) fn done(tembuku: &Succession) -> Option<u32> {
    let text = fs::read_to_string(tembuku.first.dir.file("done")).ok()?;
    text.trim().parse().ok()
}

/// Runs as the new process, and not as a test.
#[test]
#[ignore = "it is started by another test"]
fn run_between() {
    let Ok(behaviour) = env::var(BEHAVIOUR) else {
        return;
    };
    let words: Vec<&str> = behaviour.split(' ').collect();
    let [action, "at", kind, number] = words[..] else {
        panic!("{behaviour}");
    };
    let arguments = env::var(ARGUMENTS).unwrap();
    let file = arguments.split(' ').next_back().unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    // It ends together with this process, which the old one takes for the new one. The command has
    // its end of the channel, and is dropped here.
    let child = command("setpriv --pdeathsig KILL")
        .arg(binary())
        .args(arguments.split(' '))
        .env_remove(BEHAVIOUR)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let between = Arc::new(Between {
        action: action.to_owned(),
        kind: Kind::from_word(kind).unwrap(),
        number: Mutex::new(number.parse().unwrap()),
        old: getppid().unwrap(),
        new: Pid::from_child(&child),
        done: PathBuf::from(file).with_file_name("done"),
    });
    let old = Channel::new(stdin().as_fd().try_clone_to_owned().unwrap());
    // Nothing but the two ends of each direction keeps the channel to the old process open.
    rustix::stdio::dup2_stdin(fs::File::open("/dev/null").unwrap()).unwrap();
    pass_both(old, ours, &between);
    wait(child);
}

/// Until one of both has ended, which is passed on.
fn pass_both(old: Channel, new: Channel, between: &Arc<Between>) {
    let copy = |channel: &Channel| Channel::new(channel.as_fd().try_clone_to_owned().unwrap());
    let (old_too, new_too) = (copy(&old), copy(&new));
    let back = Arc::clone(between);
    let answering = thread::spawn(move || back.pass(new_too, old_too));
    between.pass(old, new);
    answering.join().unwrap();
}

fn wait(mut child: Child) {
    let _ = child.wait();
}

/// It is not waited for before the end.
fn is_there(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

struct Between {
    action: String,
    kind: Kind,
    /// Messages of the kind that are still to come, with the one that is meant.
    number: Mutex<usize>,
    old: Pid,
    new: Pid,
    done: PathBuf,
}

impl Between {
    /// Until `from` has ended, or `to`, which is the end of the other direction.
    fn pass(&self, mut from: Channel, mut to: Channel) {
        loop {
            let message = match from.receive_any(Instant::now() + LONG) {
                Ok(message) => message,
                Err(ChannelError::Closed) => {
                    // As the kernel does at the end of a process.
                    let _ = shutdown(&to, Shutdown::Both);
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            let is_it = message.kind == self.kind && {
                let mut number = self.number.lock().unwrap();
                *number = number.wrapping_sub(1);
                *number == 0
            };
            if is_it {
                // Before it is done: the test may see the effect at once.
                let mark = self.done.with_extension("new");
                fs::write(&mark, self.new.as_raw_nonzero().to_string()).unwrap();
                fs::rename(mark, &self.done).unwrap();
            }
            if is_it && !self.act_before(&to) {
                continue;
            }
            let descriptors: Vec<_> = message.descriptors.iter().map(|fd| fd.as_fd()).collect();
            let deadline = Instant::now() + LONG;
            let sent = to.send(
                message.kind,
                message.version,
                &message.body,
                &descriptors,
                deadline,
            );
            drop(descriptors);
            // The process that it is for may have been killed.
            if sent.is_ok() && is_it {
                self.act_after();
            }
        }
    }

    /// Returns whether the message is to be passed on.
    fn act_before(&self, to: &Channel) -> bool {
        match &*self.action {
            "kill-new" => kill_process(self.new, Signal::KILL).unwrap(),
            "kill-old" => kill_process(self.old, Signal::KILL).unwrap(),
            "stop-new" => self.stop_new(),
            "delay" => thread::sleep(Duration::from_secs(3)),
            // Until one of both has ended. With the old one this process does.
            "hold" => wait_until("the new process has ended", LONG, || !is_there(self.new)),
            // Nothing more that it opens or gets has room.
            "no-descriptors" => {
                let open = fs::read_dir(format!("/proc/{}/fd", self.new.as_raw_nonzero()));
                let most = open.unwrap().count() + 12;
                let mut limit = command("prlimit");
                limit.arg(format!("--pid={}", self.new.as_raw_nonzero()));
                limit.arg(format!("--nofile={most}:"));
                run_ok(secs(5), limit);
            }
            "garbage" => {
                let _ = send(to, b"garbage", SendFlags::NOSIGNAL);
                return false;
            }
            "swallow" => return false,
            _ => {}
        }
        true
    }

    fn act_after(&self) {
        match &*self.action {
            "then-kill-new" => kill_process(self.new, Signal::KILL).unwrap(),
            "then-kill-old" => kill_process(self.old, Signal::KILL).unwrap(),
            "then-stop-new" => self.stop_new(),
            _ => {}
        }
    }

    /// Returns when no thread of it runs.
    fn stop_new(&self) {
        kill_process(self.new, Signal::STOP).unwrap();
        let tasks = format!("/proc/{}/task", self.new.as_raw_nonzero());
        wait_until("all threads stand still", secs(20), || {
            let mut tasks = fs::read_dir(&tasks).unwrap();
            tasks.all(|task| {
                let stat = fs::read_to_string(task.unwrap().path().join("stat"));
                stat.is_ok_and(|stat| stat.rsplit_once(") ").unwrap().1.starts_with('T'))
            })
        });
    }
}
