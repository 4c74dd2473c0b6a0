//! `tembuku import`: the configuration of another program as one of this program.

use super::{complain, print};
use crate::{
    config::{
        self,
        import::{Document, List, MOST_BYTES, Program},
    },
    sys::{blocking, files},
};
use clap::{Args, Subcommand};
use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

const OUTPUT: &str = "The configuration goes to standard output, or with `-o tembuku.toml` to that \
                      file. What became of \
                      each directive goes to standard error. Exit code 1: nothing can be imported, \
                      a file that is included is not there, or `tembuku check` refuses the result.";

#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// The `stream` block, or an `http` block with `upstream` and `proxy_pass`; includes are read.
    /// Also what `nginx -T` prints
    #[command(after_help = OUTPUT)]
    Nginx(Input),
    /// The `frontend`, `backend` and `listen` sections of `mode tcp`
    #[command(after_help = OUTPUT)]
    Haproxy(Input),
}

#[derive(Debug, Args)]
struct Input {
    /// The file, or `-` for standard input
    file: PathBuf,
    /// Exit with 1 if a directive is not carried over
    #[arg(long)]
    strict: bool,
    /// Only sections of listeners and upstreams, to be appended to another configuration:
    /// `>> tembuku.toml`
    #[arg(long)]
    sections: bool,
    /// Write the configuration to this file, which must not be there yet
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file of --output
    #[arg(long, requires = "output")]
    force: bool,
}

impl Input {
    /// The file that is written, if it is not standard output.
    fn target(&self) -> Option<&Path> {
        let file = self.output.as_deref();
        file.filter(|file| *file != Path::new("-"))
    }
}

/// The configuration goes to standard output, the lists go to standard error.
pub(super) fn run(arguments: &Import) -> ExitCode {
    let (input, program) = match &arguments.from {
        From::Nginx(input) => (input, Program::Nginx),
        From::Haproxy(input) => (input, Program::Haproxy),
    };
    let name = input.file.display().to_string();
    let command = format!("tembuku import {} {name}", program.name().to_lowercase());
    if let Some(there) = input
        .target()
        .filter(|file| file.symlink_metadata().is_ok())
        && !input.force
    {
        complain(&format!("{}\n", is_there(there, &command)));
        return ExitCode::FAILURE;
    }
    let result = read(&input.file).and_then(|text| program.import(&text, &name));
    match result.and_then(|document| write(document, program, &command, input)) {
        Ok(has_lost) => match has_lost && input.strict {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        },
        Err(why) => {
            let why = why.trim_end();
            let is_marked = why.starts_with("error: ");
            complain(&format!(
                "{}{why}\n",
                if is_marked { "" } else { "error: " }
            ));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether anything is not carried over.
fn write(
    mut document: Document,
    program: Program,
    command: &str,
    input: &Input,
) -> Result<bool, String> {
    let report = document.report();
    // Without a text of its own, which may be of a million lines.
    let mut lists = io::BufWriter::new(io::stderr().lock());
    let _ = write!(lists, "{report}").and_then(|()| lists.flush());
    drop(lists);
    if !document.has_listener() {
        let mut errors = document.errors("", None);
        errors.push(
            "error: nothing can be imported as a listener: the lists say why\n  hint: the file \
             is meant that has the `stream` block of nginx, or a `frontend` or `listen` section of \
             HAProxy with `mode tcp`"
                .to_owned(),
        );
        return Err(errors.join("\n"));
    }
    match input.sections {
        true => document.complete_sections(program),
        false => document.complete(program),
    }
    let toml = format!("{}{}", report.comments(command), document.toml());
    let file = input.target();
    match file {
        Some(file) => create(file, &toml, input.force, command)?,
        None => print(&toml)?,
    }
    let name = file.map_or("the result".into(), Path::to_string_lossy);
    // What was valid there may be refused here: then its position is named.
    let errors = document.errors(&toml, config::parse(&toml, &name).err());
    if !errors.is_empty() {
        return Err(errors.join("\n"));
    }
    if file.is_some() {
        complain(&format!("next: tembuku check --probe -c {name}\n"));
    }
    Ok(report.has(List::Lost))
}

fn is_there(file: &Path, command: &str) -> String {
    let file = file.display();
    format!(
        "error: {file} is there already\n  hint: --force overwrites it; `{command} --sections >> \
         {file}` appends to it"
    )
}

fn create(file: &Path, toml: &str, may_replace: bool, command: &str) -> Result<(), String> {
    let create = || File::create_new(file)?.write_all(toml.as_bytes());
    let result = match may_replace {
        true => files::replace(file, toml.as_bytes()),
        false => create(),
    };
    result.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => is_there(file, command),
        _ => format!("error: cannot write {}: {e}", file.display()),
    })
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = match path == Path::new("-") {
        true => {
            let mut bytes = Vec::new();
            if io::stdin().is_terminal() {
                complain("reading standard input up to Ctrl-D\n");
            }
            let input = io::stdin().lock().take(MOST_BYTES + 1);
            let read = { input }.read_to_end(&mut bytes);
            read.and_then(|_| match bytes.len() as u64 > MOST_BYTES {
                true => Err(files::too_large(MOST_BYTES)),
                false => Ok(bytes),
            })
        }
        false => {
            let path = path.to_owned();
            let call = move || files::read(&path, MOST_BYTES);
            blocking::call_and_wait(blocking::LIMIT, call).and_then(|read| read)
        }
    };
    let bytes = bytes.map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::FileTooLarge => "\n  hint: name the file of the configuration",
            io::ErrorKind::IsADirectory => "\n  hint: this is a directory: name a file in it",
            _ => "",
        };
        format!("error: cannot read {}: {e}{hint}", path.display())
    })?;
    // Comments of old files are often not UTF-8.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
