//! `tembuku explain`: which backend a client would get, and why.

mod json;
mod question;
mod running;
mod source;
mod text;

use super::{ConfigFile, code, complain, written};
use crate::{
    config::{self, text::shorten::shorten},
    upstream::explain::{Client, MOST_CLIENTS, Process},
};
use clap::{ArgGroup, Args};
use ipnet::IpNet;
use question::Question;
use source::Sources;
use std::{
    io::{self, BufWriter, Write as _},
    path::PathBuf,
    process::ExitCode,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which_clients")
    .required(true)
    .multiple(true)
    .args(["client", "clients", "sample"]))]
#[command(after_help = "\
Without --running the answer is that of a process which has just started with this file: nothing \
has failed, backends that are `down` or have weight 0 get no client, and the clients come one \
after the other and do not stay. So least_conn and least_time pick in rotation, \
hash_balance_factor bounds nothing, and random_two draws (by the seed: a running process draws \
otherwise). Host names are not resolved; each counts as one backend. Sources of backends are not \
asked: with STATE_DIRECTORY set to that of the process, there are the backends that it has saved.")]
pub(super) struct Explain {
    #[command(flatten)]
    file: ConfigFile,
    /// The listener that the clients come to; may be left out where the file has one
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    #[arg(
        long,
        value_name = "IP[:PORT]",
        conflicts_with_all = ["clients", "sample"],
        help = "A client: \"192.0.2.1\", \"[2001:db8::1]:5000\", \"unix:\"; may be given several \
            times"
    )]
    client: Vec<Client>,
    /// Every address of a network as a client, 1,048,576 at most
    #[arg(long, value_name = "CIDR", value_parser = network)]
    clients: Option<IpNet>,
    /// So many different clients drawn from --clients, or from 1.0.0.0-223.255.255.255
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_CLIENTS))]
    sample: Option<u64>,
    /// For what is drawn: the same seed gives the same answer
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Show which clients move when this backend cannot be used; may be given several times
    #[arg(long, value_name = "BACKEND")]
    without: Vec<String>,
    /// The port that the clients come to, for a hash key with $server_port
    #[arg(long, value_name = "N")]
    server_port: Option<u16>,
    /// With the weights and the states of backends in the running process
    #[arg(long)]
    running: bool,
    /// … which has this admin socket; without this the one that the configuration file names
    #[arg(long, value_name = "PATH", requires = "running")]
    socket: Option<PathBuf>,
    /// One JSON object, with every client
    #[arg(long)]
    json: bool,
}

fn network(text: &str) -> Result<IpNet, &'static str> {
    let net = text.parse();
    net.map_err(|_| "a network is written \"10.0.0.0/8\" or \"2001:db8::/64\"")
}

pub(super) fn run(args: &Explain) -> ExitCode {
    let loaded = config::load(&args.file.config).map_err(|problems| problems.to_string());
    let loaded = loaded.and_then(|mut plan| match args.running {
        true => {
            let (plan, notes) = running::apply(plan, args.file.clone(), args.socket.clone())?;
            Ok((plan, notes, None))
        }
        false => {
            let sources = Sources::apply(&mut plan);
            Ok((plan, None, Some(sources)))
        }
    });
    let (plan, running, sources) = match loaded {
        Ok(loaded) => loaded,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    let question = match Question::new(args, &plan) {
        Ok(question) => Question {
            running: running.map(|notes| notes.of(&question.upstream.name)),
            source: sources.and_then(|sources| sources.note_of(&question.upstream.name)),
            ..question
        },
        Err(why) => {
            complain(&format!("error: {}\n", shorten(&why, 1_000)));
            return ExitCode::from(2);
        }
    };
    code(written(answer(&question, args.json)))
}

fn answer(question: &Question<'_>, as_json: bool) -> io::Result<()> {
    let process = |without: &[usize]| {
        Process::new(
            question.listener,
            question.upstream,
            question.server_port,
            without,
            question.seed,
        )
    };
    let whole = process(&[]);
    let rest = (!question.without.is_empty()).then(|| process(&question.without));
    let mut out = BufWriter::new(io::stdout().lock());
    if as_json {
        json::write(&mut out, question, whole, rest)?;
    } else {
        text::write(&mut out, question, whole, rest)?;
    }
    out.flush()
}
