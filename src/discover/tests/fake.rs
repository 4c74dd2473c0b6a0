//! A server of HTTP that does what a test wants.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

pub(super) struct Request {
    /// Method and path.
    pub(super) line: String,
    pub(super) head: String,
    pub(super) body: String,
}

pub(super) struct Fake {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// Each request, on a connection of its own, is given to the handler with its number from 0.
    pub(super) fn start(
        handler: impl Fn(usize, &Request, &mut TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let has_ended = Arc::new(AtomicBool::new(false));
        let handler = Arc::new(handler);
        let thread = thread::spawn({
            let (requests, has_ended) = (requests.clone(), has_ended.clone());
            move || {
                for stream in listener.incoming() {
                    if has_ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let (requests, handler) = (requests.clone(), handler.clone());
                    let mut stream = stream.expect("a connection");
                    thread::spawn(move || {
                        let Some(request) = read(&mut stream) else {
                            return;
                        };
                        let number = {
                            let mut requests = requests.lock().expect("no panic");
                            requests.push(request.line.clone());
                            requests.len() - 1
                        };
                        handler(number, &request, &mut stream);
                    });
                }
            }
        });
        Self {
            address,
            requests,
            has_ended,
            thread: Some(thread),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::SeqCst);
        // Wakes the thread in accept.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.extend_from_slice(&byte);
    }
    let head = String::from_utf8(bytes).ok()?;
    let lower = head.to_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(Some(0), |length| length.trim().parse().ok())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let line = head
        .lines()
        .next()?
        .trim_end_matches(" HTTP/1.1")
        .to_owned();
    Some(Request {
        line,
        head: lower,
        body: String::from_utf8(body).ok()?,
    })
}

/// A whole answer; `fields` are lines with their ends.
pub(super) fn answer(stream: &mut TcpStream, status: &str, fields: &str, body: &str) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    );
}

pub(super) fn begin_stream(stream: &mut TcpStream) {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
}

pub(super) fn chunk(stream: &mut TcpStream, text: &str) {
    let _ = write!(stream, "{:x}\r\n{text}\r\n", text.len());
}

pub(super) fn end_stream(stream: &mut TcpStream) {
    let _ = stream.write_all(b"0\r\n\r\n");
}

/// Until the client is gone.
pub(super) fn hang(stream: &mut TcpStream) {
    while stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
}
