//! A browser without a screen, driven over its debugging pipe (the Chrome DevTools protocol).

use super::{poll, proc::Proc, secs, temp::TempDir};
use serde_json::{Value, json};
use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// How long an answer may take on a machine that is busy with other tests.
const SOON: Duration = secs(60);

/// One page of a browser of its own.
pub(crate) struct Chromium {
    commands: File,
    answers: Receiver<Value>,
    next_id: u64,
    session: String,
    /// What the console and the log of the page have shown, errors and violations of the content
    /// security policy among them.
    complaints: Vec<String>,
    _proc: Proc,
    _dir: TempDir,
}

impl Chromium {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let dir = TempDir::new();
        let (commands, answers) = (dir.file("commands"), dir.file("answers"));
        for path in [&commands, &answers] {
            let path = CString::new(path.to_str().unwrap()).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path.as_c_str(),
                rustix::fs::FileType::Fifo,
                0o600.into(),
                0,
            )
            .unwrap();
        }
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
             --disable-background-networking --disable-component-update --disable-extensions \
             --no-first-run --window-size=1200,900 --user-data-dir=\"$2\" \
             --remote-debugging-pipe about:blank 3<\"$0\" 4>\"$1\"",
        ]);
        command.args([&commands, &answers, &dir.file("profile")]);
        let proc = Proc::start("chromium", dir.path(), command);
        // Each waits for the other side.
        let commands = OpenOptions::new().write(true).open(&commands).unwrap();
        let answers = File::open(&answers).unwrap();
        let (send, receive) = channel();
        thread::spawn(move || {
            let mut answers = BufReader::new(answers);
            let mut message = Vec::new();
            while answers.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                message.pop();
                let read = serde_json::from_slice(&message);
                if read.is_ok_and(|message| send.send(message).is_err()) {
                    return;
                }
                message.clear();
            }
        });
        let mut chromium = Self {
            commands,
            answers: receive,
            next_id: 1,
            session: String::new(),
            complaints: Vec::new(),
            _proc: proc,
            _dir: dir,
        };
        let target = chromium.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = chromium.call("Target.attachToTarget", attach);
        chromium.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            chromium.call(&format!("{domain}.enable"), json!({}));
        }
        chromium
    }

    /// The result of a command of the protocol.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let result = self.try_call(method, params);
        result.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// An error may be that of a page that is just being left.
    #[track_caller]
    fn try_call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).unwrap();
        let end = Instant::now() + SOON;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(mut answer) if answer["id"] == id => {
                    return match answer["error"].take() {
                        Value::Null => Ok(answer["result"].take()),
                        error => Err(error),
                    };
                }
                Ok(event) => self.note(&event),
                Err(RecvTimeoutError::Timeout) => panic!("no answer to {method}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser has ended"),
            }
        }
    }

    fn note(&mut self, event: &Value) {
        let is_complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "debug",
            Some("Log.entryAdded") => true,
            _ => false,
        };
        if is_complaint {
            self.complaints.push(event["params"].to_string());
        }
    }

    /// Of all pages so far.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // What has come by now is read with the answer to a question.
        self.evaluate("0");
        self.complaints.clone()
    }

    #[track_caller]
    pub(crate) fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert!(opened["errorText"].is_null(), "{opened}");
    }

    /// The value of an expression in the page.
    #[track_caller]
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut result = self.call("Runtime.evaluate", params);
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].take()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn wait(&mut self, expression: &str) {
        let is_true = poll(SOON, || {
            let params = json!({ "expression": expression, "returnByValue": true });
            let result = self.try_call("Runtime.evaluate", params);
            result
                .is_ok_and(|result| result["result"]["value"] == true)
                .then_some(())
        });
        if is_true.is_none() {
            let text = self.evaluate("document.body.innerText");
            panic!("never so: {expression}\n{}", text.as_str().unwrap());
        }
    }

    /// A PNG of what is seen, for the documentation: `width` pixels wide.
    pub(crate) fn photograph(&mut self, path: &Path, width: u32, height: u32, is_dark: bool) {
        let scheme = if is_dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": [feature] }),
        );
        self.set_size(width, height);
        // Two frames later it is drawn.
        self.evaluate(
            "requestAnimationFrame(() => requestAnimationFrame(() => window.drawn = 1)); 0",
        );
        self.wait("window.drawn === 1");
        self.evaluate("delete window.drawn");
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        fs::write(path, from_base64(picture["data"].as_str().unwrap())).unwrap();
    }

    pub(crate) fn set_size(&mut self, width: u32, height: u32) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b'=')
        .map(digit)
        .collect();
    let of_four = |four: &[u8]| {
        let bits = four
            .iter()
            .fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit));
        let bits = bits << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    digits.chunks(4).flat_map(of_four).collect()
}
