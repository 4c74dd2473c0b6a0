//! Arbitrary bytes as the messages of another process at an upgrade: what is read from them is
//! written and read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tembuku::internals::handover::{
    counters::Account,
    discovery::DiscoveryRecord,
    fields::{Fields, read_list, read_required_list, write_list, write_required_list},
    flows::{FlowBatch, FlowsTaken},
    hello::{Accept, Hello, Ready, Refusal},
    journal::JournalRecord,
    listeners::ListeningRecord,
    places::PlacesRecord,
    pools::PoolRecord,
    record::Malformed,
    remainder::Remainder,
    session::{SessionRecord, read_verdicts, waiting::WaitingRecord},
};

fuzz_target!(|bytes: &[u8]| {
    record::<Hello>(bytes);
    record::<Refusal>(bytes);
    record::<Ready>(bytes);
    record::<Accept>(bytes);
    record::<Remainder>(bytes);
    record::<JournalRecord>(bytes);
    record::<FlowBatch>(bytes);
    record::<FlowsTaken>(bytes);
    list::<Account>(bytes);
    list::<DiscoveryRecord>(bytes);
    list::<ListeningRecord>(bytes);
    list::<PoolRecord>(bytes);
    required_list::<PlacesRecord>(bytes);
    required_list::<SessionRecord>(bytes);
    required_list::<WaitingRecord>(bytes);
    let _ = read_verdicts(bytes);
});

/// As bytes: a number of them may be none that is equal to itself.
fn same<T>(bytes: &[u8], read: fn(&[u8]) -> Result<T, Malformed>, write: impl Fn(&T) -> Vec<u8>) {
    match read(bytes) {
        Ok(value) => {
            let written = write(&value);
            let again = read(&written).map(|value| write(&value));
            assert_eq!(again, Ok(written));
        }
        Err(error) => drop(error.to_string()),
    }
}

fn record<T: Fields>(bytes: &[u8]) {
    same(bytes, T::read, T::write);
}

fn list<T: Fields>(bytes: &[u8]) {
    same(bytes, read_list::<T>, |items| write_list(items));
}

fn required_list<T: Fields>(bytes: &[u8]) {
    same(bytes, read_required_list::<T>, |items| {
        write_required_list(items)
    });
}
