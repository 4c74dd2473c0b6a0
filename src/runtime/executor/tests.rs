use super::*;
use crate::runtime::mailbox::Message;
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    rc::Rc,
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    task::ready,
    thread,
};

/// A thread can be an executor once. Runs until the task of `root` has ended.
fn on_an_executor<F: Future<Output = ()>>(root: impl FnOnce() -> F + Send + 'static) {
    type Start = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;
    let mailbox: Arc<Mailbox<Start>> = Arc::new(Mailbox::new().expect("a mailbox"));
    let reactor = Reactor::new(mailbox.fd(), Instant::now()).expect("a reactor");
    let (ended, has_passed) = (Arc::clone(&mailbox), Arc::new(AtomicBool::new(false)));
    let passes = Arc::clone(&has_passed);
    mailbox.send(Message::Order(Box::new(move || {
        Box::pin(async move {
            let _stop = StopWhenDropped(ended);
            root().await;
            passes.store(true, Relaxed);
        })
    })));
    let thread = thread::spawn(move || run(reactor, &mailbox, |start: Start| spawn(start())));
    thread.join().expect("no panic");
    assert!(has_passed.load(Relaxed), "the root task panicked");
}

struct StopWhenDropped<O>(Arc<Mailbox<O>>);

impl<O> Drop for StopWhenDropped<O> {
    fn drop(&mut self) {
        self.0.send(Message::Stop);
    }
}

/// Waits, but not for ever.
async fn soon(mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "it does not come");
        yield_to_events().await;
    }
}

fn pair() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("non-blocking");
    // A short read of one is taken for all that there is, as of TCP.
    (Stream::connecting(ours.into(), StreamKind::Tcp), theirs)
}

/// Reads slowly to the end, but nothing before `start` has a message: until then the buffers of
/// the connection fill, however fast this thread is.
fn read_after(start: &mpsc::Receiver<()>, mut socket: UnixStream) -> Vec<u8> {
    start.recv().expect("the buffers were never full");
    let (mut all, mut part) = (Vec::new(), [0; 7_000]);
    loop {
        match socket.read(&mut part).expect("read") {
            0 => return all,
            n => all.extend_from_slice(&part[..n]),
        }
        if all.len() % 3 == 0 {
            thread::sleep(Duration::from_micros(300));
        }
    }
}

#[test]
fn tasks_are_polled_in_rotation() {
    on_an_executor(|| async {
        let polled = Rc::new(RefCell::new(Vec::new()));
        for name in ["a", "b"] {
            let polled = Rc::clone(&polled);
            spawn(async move {
                for _ in 0..3 {
                    polled.borrow_mut().push(name);
                    yield_now().await;
                }
            });
        }
        soon(|| polled.borrow().len() == 6).await;
        assert_eq!(*polled.borrow(), ["a", "b", "a", "b", "a", "b"]);
    });
}

#[test]
fn a_panic_ends_its_task_and_no_other() {
    on_an_executor(|| async {
        let done = Rc::new(Cell::new(0));
        for n in 0..3 {
            let done = Rc::clone(&done);
            spawn(async move {
                yield_now().await;
                assert!(n != 1, "this one does");
                done.set(done.get() + 1);
            });
        }
        soon(|| done.get() == 2).await;
        let (tasks, timers) = with_core(|core| {
            (
                core.tasks.borrow().len(),
                core.timers.borrow().next().is_some(),
            )
        });
        assert_eq!((tasks, timers), (1, false), "only this task remains");
    });
}

#[test]
fn remaining_tasks_are_dropped_at_a_stop() {
    let (sender, receiver) = mpsc::channel::<()>();
    on_an_executor(move || async move {
        let (socket, theirs) = pair();
        spawn(async move {
            let _kept = (sender, theirs);
            poll_fn(|_| socket.poll_readable()).await.expect("readable");
        });
        yield_to_events().await;
    });
    assert!(receiver.recv().is_err(), "the sender is dropped");
}

#[test]
fn a_sleep_is_not_too_short() {
    on_an_executor(|| async {
        for ms in [0, 1, 3, 600, 20] {
            let time = Duration::from_millis(ms);
            let began = Instant::now();
            sleep(time).await;
            assert!(began.elapsed() >= time);
        }
    });
}

/// The earliest time that was set in a poll counts, and replaces that of an earlier poll.
#[test]
fn a_task_has_one_timer() {
    on_an_executor(|| async {
        let (begun, mut polls) = (Instant::now(), 0);
        let (soon, later) = (Duration::from_millis(5), Duration::from_millis(40));
        let hour = Duration::from_secs(3600);
        poll_fn(|_| {
            polls += 1;
            match polls {
                1 => {
                    wake_at(begun + hour);
                    wake_at(begun + soon);
                    wake_at(begun + hour);
                }
                2 => {
                    assert!((soon..hour).contains(&begun.elapsed()));
                    wake_at(begun + hour);
                    wake_at(begun + later);
                }
                _ => return Poll::Ready(()),
            }
            Poll::Pending
        })
        .await;
        assert!((later..hour).contains(&begun.elapsed()));
        assert_eq!(with_core(|core| core.timers.borrow().next()), None);
    });
}

/// Also while there are always tasks to poll.
#[test]
fn a_stop_is_not_overlooked() {
    on_an_executor(|| async {
        spawn(async {
            loop {
                spawn(async { poll_fn(|_| Poll::Pending).await });
                yield_now().await;
            }
        });
        yield_to_events().await;
    });
}

#[test]
fn other_threads_wake_a_task() {
    on_an_executor(|| async {
        for _ in 0..1000 {
            let (sender, receiver) = mpsc::channel();
            let (mut other, mut is_sent) = (None, false);
            poll_fn(|cx| {
                other.get_or_insert_with(|| {
                    let (waker, sender) = (cx.waker().clone(), sender.clone());
                    thread::spawn(move || {
                        sender.send(()).expect("a receiver");
                        waker.wake();
                    })
                });
                is_sent |= receiver.try_recv().is_ok();
                if is_sent {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            other.expect("it was begun").join().expect("no panic there");
        }
    });
}

/// Every byte arrives, in order, whichever side is faster.
#[test]
fn bytes_go_through_both_ways() {
    const BYTES: usize = 3_000_000;
    let byte = |n: usize| (n % 251) as u8;
    on_an_executor(move || async move {
        let (socket, mut theirs) = pair();
        let other = thread::spawn(move || {
            let mut all = vec![0; BYTES];
            theirs.read_exact(&mut all).expect("all of it");
            assert!((0..BYTES).all(|n| all[n] == byte(n)));
            for piece in all.chunks(777) {
                theirs.write_all(piece).expect("taken");
            }
        });
        let all: Vec<u8> = (0..BYTES).map(byte).collect();
        let mut at = 0;
        while at < BYTES {
            at += poll_fn(|_| socket.poll_write(&all[at..], false))
                .await
                .expect("written");
        }
        let (mut buffer, mut got) = (vec![0; 10_000], Vec::new());
        loop {
            match poll_fn(|_| socket.poll_read(&mut buffer)).await {
                Ok(0) => break,
                Ok(n) => got.extend_from_slice(&buffer[..n]),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(got == all, "what came back differs");
        other.join().expect("no panic there");
    });
}

/// What arrived before the first wait is not missed, nor is an end.
#[test]
fn nothing_is_missed_before_the_first_wait() {
    for may_read in [false, true] {
        on_an_executor(move || async move {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            ours.set_nonblocking(true).expect("non-blocking");
            theirs.write_all(b"early").expect("written");
            drop(theirs);
            let socket = match may_read {
                true => Stream::accepted(ours.into(), StreamKind::Tcp),
                false => Stream::connecting(ours.into(), StreamKind::Tcp),
            };
            let mut buffer = [0; 100];
            for expected in [5, 0] {
                let n = poll_fn(|_| socket.poll_read(&mut buffer)).await;
                assert_eq!(n.expect("read"), expected);
            }
        });
    }
}

#[test]
fn a_socket_with_a_reused_number_is_not_mixed_up() {
    on_an_executor(|| async {
        let mut buffer = [0; 10];
        for n in 0..100u8 {
            let (socket, mut theirs) = pair();
            // Watched, and with an event on its way when it is closed.
            let first = poll_fn(|_| Poll::Ready(socket.poll_read(&mut buffer).is_pending()));
            assert!(first.await);
            theirs.write_all(&[n]).expect("written");
            drop(socket);
            let (socket, mut theirs) = pair();
            let early = poll_fn(|_| Poll::Ready(socket.poll_read(&mut buffer).is_pending()));
            assert!(early.await, "nothing has come on this one");
            yield_to_events().await;
            theirs.write_all(&[n, n]).expect("written");
            let read = poll_fn(|_| socket.poll_read(&mut buffer)).await;
            assert_eq!(read.expect("read"), 2);
        }
        let sources = with_core(|core| core.sources.borrow().len());
        assert_eq!(sources, 0);
    });
}

#[test]
fn connecting_succeeds_or_says_why_not() {
    on_an_executor(|| async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let connect = || async move {
            use socket2::{Domain, Type};
            let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None);
            let socket = Stream::connecting(socket.expect("a socket").into(), StreamKind::Tcp);
            poll_fn(|_| socket.poll_connect(&address)).await
        };
        connect().await.expect("connected");
        drop(listener);
        let refused = connect().await.expect_err("no listener");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

/// A blocked task is not woken by all that arrives meanwhile, but by the end, and by what arrives
/// once it waits again.
#[test]
fn what_arrives_while_read_interest_is_suspended_wakes_no_task() {
    on_an_executor(|| async {
        let (socket, mut theirs) = pair();
        let (polls, waker) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(None)));
        let (is_blocked, read) = (Rc::new(Cell::new(true)), Rc::default());
        let task = {
            let (polls, waker) = (Rc::clone(&polls), Rc::clone(&waker));
            let (is_blocked, read): (_, Rc<RefCell<Vec<u8>>>) =
                (Rc::clone(&is_blocked), Rc::clone(&read));
            poll_fn(move |cx| {
                polls.set(polls.get() + 1);
                *waker.borrow_mut() = Some(cx.waker().clone());
                while !is_blocked.get() {
                    let mut buf = [0; 2];
                    match socket.poll_read(&mut buf) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(0)) => return Poll::Ready(()),
                        Poll::Ready(n) => read.borrow_mut().extend(&buf[..n.expect("read")]),
                    }
                }
                match polls.get() {
                    1 => assert!(socket.poll_readable().is_pending()),
                    _ => socket.suspend_read_interest(),
                }
                Poll::Pending
            })
        };
        spawn(task);
        yield_to_events().await;
        theirs.write_all(b"a").expect("written");
        soon(|| polls.get() == 2).await;
        for more in [b"b", b"c"] {
            theirs.write_all(more).expect("written");
            yield_to_events().await;
            yield_to_events().await;
            assert_eq!(polls.get(), 2);
        }
        is_blocked.set(false);
        waker.take().expect("a waker").wake();
        soon(|| *read.borrow() == b"abc").await;
        theirs.write_all(b"d").expect("written");
        soon(|| *read.borrow() == b"abcd").await;
        is_blocked.set(true);
        let before = polls.get();
        theirs.write_all(b"e").expect("written");
        soon(|| polls.get() > before).await;
        is_blocked.set(false);
        drop(theirs);
        soon(|| *read.borrow() == b"abcde").await;
    });
}

/// Nothing is written before the end of the turn, and everything in order then.
#[test]
fn deferred_bytes_are_written_when_the_turn_ends() {
    on_an_executor(|| async {
        let (socket, mut theirs) = pair();
        theirs.set_nonblocking(true).expect("non-blocking");
        let mut got = [0; 16];
        for part in [&b"one"[..], b"two"] {
            socket.defer_copy(part);
        }
        assert!(socket.has_deferred());
        let early = theirs.read(&mut got).expect_err("nothing yet");
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        yield_to_events().await;
        assert!(!socket.has_deferred());
        let n = theirs.read(&mut got).expect("read");
        assert_eq!(&got[..n], b"onetwo");
        // A write, the end, and closing come after deferred bytes.
        socket.defer_copy(b"three");
        assert!(socket.take_unwritten().is_none());
        let four = poll_fn(|_| socket.poll_write(b"four", false)).await;
        assert_eq!(four.expect("written"), 4);
        socket.defer_copy(b"five");
        socket.end_writing().expect("ended");
        let n = theirs.read(&mut got).expect("read");
        assert_eq!(&got[..n], b"threefourfive");
        assert_eq!(theirs.read(&mut got).expect("the end"), 0);
        let (socket, mut theirs) = pair();
        socket.defer_copy(b"last");
        drop(socket);
        let n = theirs.read(&mut got).expect("read");
        assert_eq!(&got[..n], b"last");
    });
}

/// What was received is written in order with what was copied, however much of it there is.
#[test]
fn received_bytes_can_be_deferred() {
    on_an_executor(|| async {
        let (source, mut writer) = pair();
        let (sink, listener) = pair();
        let sent: Vec<u8> = (0..2_000_000_u32)
            .map(|i| (i.wrapping_mul(i) >> 7) as u8)
            .collect();
        let wanted = sent.clone();
        let speaking = thread::spawn(move || {
            for part in sent.chunks(7_001) {
                writer.write_all(part).expect("written");
            }
        });
        let (start_reading, start) = mpsc::channel();
        let reader = thread::spawn(move || read_after(&start, listener));
        let (mut is_copied, mut times_unwritten) = (false, 0);
        let mut has_ended = false;
        while !has_ended {
            // Several writes in a turn, sometimes more than fit.
            has_ended = poll_fn(|_| {
                for n in 0..12 {
                    is_copied = !is_copied;
                    let read = source.with_received(usize::MAX, |received| {
                        let copied = is_copied.then(|| received.to_vec());
                        let has_ended = received.is_empty();
                        if !is_copied && !has_ended {
                            sink.defer(received);
                        }
                        (copied.unwrap_or_default(), has_ended)
                    });
                    let (copied, has_ended) = match read {
                        Poll::Pending if n > 0 => break,
                        read => ready!(read).expect("read"),
                    };
                    if has_ended {
                        return Poll::Ready(true);
                    }
                    copied.chunks(30_000).for_each(|part| sink.defer_copy(part));
                }
                Poll::Ready(false)
            })
            .await;
            yield_to_events().await;
            let Some(unwritten) = sink.take_unwritten() else {
                continue;
            };
            times_unwritten += 1;
            start_reading.send(()).expect("a reader");
            let mut rest = &unwritten.bytes[..];
            while !rest.is_empty() {
                let written = poll_fn(|_| sink.poll_write(rest, false)).await;
                rest = &rest[written.expect("written")..];
            }
        }
        assert!(times_unwritten > 0, "it was never full");
        // After the end there is always the end.
        let end = poll_fn(|_| source.with_received(usize::MAX, |received| received.len())).await;
        assert_eq!(end.expect("read"), 0);
        speaking.join().expect("no panic");
        drop((source, sink));
        let got = reader.join().expect("no panic");
        assert!(got == wanted, "{} of {}", got.len(), wanted.len());
    });
}

/// Against a slow reader: what was written and what was not are all there is.
#[test]
fn what_the_kernel_does_not_take_is_returned() {
    on_an_executor(|| async {
        let (socket, theirs) = pair();
        let (start_reading, start) = mpsc::channel();
        let reader = thread::spawn(move || read_after(&start, theirs));
        let (mut sent, mut times_unwritten) = (Vec::new(), 0);
        for n in 0..3_000_u32 {
            // One write in a turn, or several.
            for m in 0..=n % 3 {
                let part: Vec<u8> = (0..n * 7919 % 9_000).map(|i| (i ^ n ^ m) as u8).collect();
                sent.extend_from_slice(&part);
                socket.defer_copy(&part);
            }
            if n % 2 == 0 {
                yield_to_events().await;
            }
            let Some(unwritten) = socket.take_unwritten() else {
                continue;
            };
            assert!(unwritten.error.is_none() && sent.ends_with(&unwritten.bytes));
            times_unwritten += 1;
            start_reading.send(()).expect("a reader");
            let mut at = 0;
            while at < unwritten.bytes.len() {
                let written = poll_fn(|_| socket.poll_write(&unwritten.bytes[at..], false)).await;
                at += written.expect("written");
            }
        }
        assert!(times_unwritten > 0, "it was never full");
        drop(socket);
        let all = reader.join().expect("no panic");
        assert!(
            all == sent,
            "{} of {} bytes, or others",
            all.len(),
            sent.len()
        );
        assert!(!with_core(|core| core.deferred.borrow().has_unwritten()));
    });
}

/// The kernel reports an error once, to the write: a later read must know of it, too.
#[test]
fn a_failed_deferred_write_is_reported() {
    on_an_executor(|| async {
        let (socket, theirs) = pair();
        drop(theirs);
        let mut polls = 0;
        let unwritten = poll_fn(|_| {
            polls += 1;
            if polls == 1 {
                socket.defer_copy(b"lo");
                socket.defer_copy(b"st");
                return Poll::Pending;
            }
            // The failure has woken the task.
            assert!(
                !socket.has_deferred()
                    && socket.socket.get(|source| source.has_unwritten)
                    && socket.is_unwritable()
            );
            Poll::Ready(socket.take_unwritten())
        })
        .await
        .expect("all of it");
        let error = unwritten.error.expect("the peer is gone");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(unwritten.bytes, b"lost");
        assert!(!with_core(|core| core.deferred.borrow().has_unwritten()));
    });
}
