//! A check against arbitrary bytes of a server.

use tembuku::internals::{config::parse, probe::Replay};

/// A target for this kind of check, with each of these settings.
macro_rules! fuzz_check {
    ($kind:literal, $settings:expr) => {
        static REPLAYS: std::sync::LazyLock<Vec<tembuku::internals::probe::Replay>> =
            std::sync::LazyLock::new(|| check::replays($kind, &$settings));
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::run(&REPLAYS, bytes));
    };
}

/// The checks of this kind with each of these settings, as lines of TOML.
pub fn replays(kind: &str, settings: &[&str]) -> Vec<Replay> {
    let replay = |settings: &&str| {
        let text = format!(
            "[listeners.l]\nbind = \"127.0.0.1:1\"\nupstream = \"u\"\n[upstreams.u]\n\
             backends = [\"127.0.0.1:2\"]\n[upstreams.u.check]\nkind = \"{kind}\"\n{settings}\n"
        );
        let plan = parse(&text, "fuzz.toml").expect("a valid configuration");
        let check = plan.upstreams[0].check.as_ref().expect("a check");
        Replay::new(check).expect("credentials")
    };
    settings.iter().map(replay).collect()
}

/// The first byte chooses the settings, and in which pieces the others arrive: the result does not
/// depend on that.
pub fn run(replays: &[Replay], bytes: &[u8]) {
    let Some((&choice, received)) = bytes.split_first() else {
        return;
    };
    let choice = usize::from(choice);
    let replay = &replays[choice % replays.len()];
    let whole = replay.run(received, usize::MAX);
    let in_pieces = replay.run(received, 1 + choice / replays.len());
    assert_eq!(whole, in_pieces);
}
