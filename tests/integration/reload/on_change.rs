//! `reload_on_change`: a reload follows when files have other contents, however they are written.

use super::{Setup, setup};
use crate::harness::{net, secs, wait_until};
use rustix::process::Signal;
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

const RELOADING: &str = "files of the configuration have changed, reloading";

/// A process that reloads when its file changes.
fn watching() -> Setup {
    let setup = setup();
    setup.replace("workers = 2", "workers = 2\nreload_on_change = true");
    setup.reload();
    wait_watched(&setup, true);
    setup
}

/// Whether the process has a watch.
#[track_caller]
fn wait_watched(setup: &Setup, is: bool) {
    let folder = format!("/proc/{}/fdinfo", setup.tembuku.proc.id());
    wait_until(&format!("watched: {is}"), secs(10), || {
        let files = fs::read_dir(&folder).unwrap().flatten();
        let mut texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.any(|text| text.contains("inotify wd:")) == is
    });
}

fn count(setup: &Setup, message: &str) -> usize {
    let log = setup.tembuku.log().into_iter();
    log.filter(|line| line["message"] == message).count()
}

/// The configuration with this time, which the status shows by another hash.
fn with_time(setup: &Setup, seconds: u32) -> String {
    let config = setup.config();
    let lines = config
        .lines()
        .filter(|line| !line.starts_with("drain_timeout"));
    let rest = lines.collect::<Vec<_>>().join("\n");
    rest.replacen(
        "[process]",
        &format!("[process]\ndrain_timeout = \"{seconds}s\""),
        1,
    ) + "\n"
}

/// Changes the file by `write` and waits until the change is in effect, by a single reload.
#[track_caller]
fn assert_follows(setup: &Setup, seconds: u32, write: impl FnOnce(&Path, &str)) {
    let hash = || setup.status()["process"]["config_hash"].clone();
    let (before, count_before) = (hash(), count(setup, RELOADING));
    write(Path::new(&setup.file()), &with_time(setup, seconds));
    wait_until("the change is in effect", secs(20), || hash() != before);
    let reloads = || count(setup, "configuration reloaded");
    wait_until("it is logged", secs(10), || {
        count(setup, RELOADING) > count_before
    });
    assert_eq!(count(setup, RELOADING), count_before + 1);
    wait_until("every reload is logged", secs(10), || {
        reloads() >= count_before + 2
    });
    let dry_run = setup.try_reload(&["--dry-run"]);
    let printed = String::from_utf8(dry_run.stdout).unwrap();
    assert!(printed.starts_with("no changes in "), "{printed}");
}

#[test]
fn files_are_followed_however_editors_save_them() {
    let setup = watching();
    assert_follows(&setup, 1, |file, config| fs::write(file, config).unwrap());
    assert_follows(&setup, 2, |file, config| {
        let new = file.with_extension("new");
        fs::write(&new, config).unwrap();
        fs::rename(new, file).unwrap();
    });
    // The old one is kept under another name, as vim does.
    assert_follows(&setup, 3, |file, config| {
        fs::rename(file, file.with_extension("old")).unwrap();
        fs::write(file, config).unwrap();
    });
    // In pieces, of which each is closed.
    assert_follows(&setup, 4, |file, config| {
        fs::write(file, "").unwrap();
        for piece in config.as_bytes().chunks(config.len() / 3 + 1) {
            let mut file = OpenOptions::new().append(true).open(file).unwrap();
            file.write_all(piece).unwrap();
        }
    });
    // The folder is not busy with it alone.
    assert_follows(&setup, 5, |file, config| {
        fs::write(file.with_extension("other"), "x").unwrap();
        fs::write(file, config).unwrap();
    });
}

#[test]
fn a_link_that_changes_on_the_way_is_followed() {
    let setup = watching();
    let file = PathBuf::from(setup.file());
    let folder = setup.tembuku.dir.path().to_owned();
    // As a volume of Kubernetes: the file is a link into a folder that is a link.
    let publish = |number: u32, config: &str| {
        let name = format!("..{number}");
        fs::create_dir(folder.join(&name)).unwrap();
        fs::write(folder.join(&name).join("tembuku.toml"), config).unwrap();
        symlink(&name, folder.join("..new")).unwrap();
        fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
    };
    publish(1, &setup.config());
    symlink("..data/tembuku.toml", folder.join("link")).unwrap();
    fs::rename(folder.join("link"), &file).unwrap();
    for number in 2..5 {
        assert_follows(&setup, number, |_, config| {
            publish(number, config);
            fs::remove_dir_all(folder.join(format!("..{}", number - 1))).unwrap();
        });
    }
}

#[test]
fn contents_that_failed_are_not_tried_again() {
    let setup = watching();
    let failed = "reload failed, nothing was changed";
    let good = setup.config();
    let bad = good.replace("upstream = \"back\"", "upstream = \"bakc\"");
    setup.write(&bad);
    wait_until("it has failed", secs(20), || count(&setup, failed) == 1);
    let file = setup.file();
    // The same again, in every way.
    setup.write(&bad);
    fs::write(format!("{file}.new"), &bad).unwrap();
    fs::rename(format!("{file}.new"), &file).unwrap();
    fs::write(format!("{file}.other"), &good).unwrap();
    assert_eq!(
        setup.tembuku.metric("config_last_reload_successful", &[]),
        0.0
    );
    // The next that is tried is the next that is different.
    setup.write(&good);
    setup
        .tembuku
        .wait_metric("config_last_reload_successful", &[], |n| n == 1.0);
    wait_until("both are logged", secs(10), || {
        count(&setup, RELOADING) == 2
    });
    assert_eq!(count(&setup, failed), 1);
    assert_eq!(
        count(
            &setup,
            "not tried again until the files of the configuration change"
        ),
        1
    );
}

#[test]
fn the_files_that_the_configuration_names_are_watched_from_then_on() {
    let setup = watching();
    let password = setup.tembuku.dir.file("secret/password");
    let config = setup.config();
    setup.write(&format!(
        "{config}check = {{ kind = \"redis\", role = \"any\", password_file = \"{}\" }}\n",
        password.display()
    ));
    let failed = "reload failed, nothing was changed";
    wait_until("there is no password", secs(20), || {
        count(&setup, failed) == 1
    });
    // It comes later, in a folder that there was not.
    fs::create_dir(setup.tembuku.dir.file("secret")).unwrap();
    fs::write(&password, "one").unwrap();
    setup
        .tembuku
        .wait_metric("config_last_reload_successful", &[], |n| n == 1.0);
    fs::write(&password, "two").unwrap();
    wait_until("the change is reported", secs(20), || {
        let mut log = setup.tembuku.log().into_iter();
        log.any(|line| {
            line["keys"] == "check.password_file: (contents) -> (other contents)"
                && line["name"] == "back"
        })
    });
    assert!(!setup.tembuku.proc.stderr().contains("two"));
}

#[test]
fn lost_events_are_no_lost_changes() {
    let setup = watching();
    let file = PathBuf::from(setup.file());
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: usize = most.trim().parse().unwrap();
    assert_follows(&setup, 2, |_, config| {
        setup.tembuku.proc.signal(Signal::STOP);
        // Names that are not watched fill the queue as well; by turns, since equal events are one.
        let busy = ["a", "b"].map(|name| file.with_extension(name));
        for n in 0..=most {
            fs::write(&busy[n % 2], "").unwrap();
        }
        fs::write(&file, config).unwrap();
        setup.tembuku.proc.signal(Signal::CONT);
    });
}

#[test]
fn the_watch_ends_and_begins_by_a_reload() {
    let setup = watching();
    setup.replace("reload_on_change = true", "reload_on_change = false");
    wait_watched(&setup, false);
    let hash = || setup.status()["process"]["config_hash"].clone();
    let before = hash();
    // It changes nothing now, and is taken up with what comes next.
    let other = with_time(&setup, 7);
    setup.write(&other);
    assert_eq!(hash(), before);
    setup.write(&other.replace("reload_on_change = false", "reload_on_change = true"));
    setup.reload();
    wait_watched(&setup, true);
    assert_follows(&setup, 8, |file, config| fs::write(file, config).unwrap());
    assert_eq!(net::ask(setup.front).unwrap().len(), 2);
}
