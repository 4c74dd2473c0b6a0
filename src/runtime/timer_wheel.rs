//! A timer wheel for tasks and flows by their numbers. Pure: the time is passed in, in milliseconds
//! since some beginning.
//!
//! Activity does not touch it: an entry stays in its slot until that is due, and is inserted again
//! by the caller if it has been active since. So an entry costs a step or two in every `timeout`,
//! however active it is. It can be removed at once.

/// No entry.
const NONE: u32 = u32::MAX;
/// Slots of the wheel: a power of two, and more than the ticks of one timeout.
const SLOTS: usize = 512;
/// Ticks of a timeout, if that is as many milliseconds: expiry is late by no more than a tick.
const TICKS: u64 = 256;
const WORDS: usize = SLOTS / 64;

#[derive(Debug)]
pub struct TimerWheel {
    tick: u64,
    /// The first tick that has not expired.
    next_tick: u64,
    /// The first and the last entry of each slot, in the order in which they were inserted.
    ends: Box<[(u32, u32); SLOTS]>,
    /// A bit for each slot that has entries.
    occupied: [u64; WORDS],
    /// By entry.
    links: Vec<Link>,
    count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
    slot: u32,
}

const OUT: Link = Link {
    before: NONE,
    after: NONE,
    slot: NONE,
};

impl TimerWheel {
    pub fn new(timeout: u64, now: u64) -> Self {
        let tick = timeout.div_ceil(TICKS).max(1);
        Self {
            tick,
            next_tick: now / tick,
            ends: Box::new([(NONE, NONE); SLOTS]),
            occupied: [0; WORDS],
            links: Vec::new(),
            count: 0,
        }
    }

    /// `entry` must not be in yet.
    pub fn insert(&mut self, entry: u32, due: u64, now: u64) {
        self.skip_empty_ticks(now);
        let i = entry as usize;
        if self.links.len() <= i {
            self.links.resize(i + 1, OUT);
        }
        debug_assert!(self.links[i].slot == NONE, "it is in already");
        let furthest = self.next_tick + SLOTS as u64 - 1;
        let tick = due.div_ceil(self.tick).clamp(self.next_tick, furthest);
        let slot = (tick % SLOTS as u64) as usize;
        let (first, last) = &mut self.ends[slot];
        let before = std::mem::replace(last, entry);
        match before {
            NONE => *first = entry,
            before => self.links[before as usize].after = entry,
        }
        self.links[i] = Link {
            before,
            after: NONE,
            slot: slot as u32,
        };
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.count += 1;
    }

    /// Time also passes where nothing is due: otherwise an entry that is inserted later would be
    /// too far ahead for the wheel.
    fn skip_empty_ticks(&mut self, now: u64) {
        let now = now / self.tick;
        let first = self.first().map_or(now, |(tick, _)| tick);
        self.next_tick = self.next_tick.max(now.min(first));
    }

    pub fn remove(&mut self, entry: u32) {
        let Some(link) = self.links.get_mut(entry as usize) else {
            return;
        };
        let Link {
            before,
            after,
            slot,
        } = std::mem::replace(link, OUT);
        if slot == NONE {
            return;
        }
        let slot = slot as usize;
        match before {
            NONE => self.ends[slot].0 = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.ends[slot].1 = before,
            after => self.links[after as usize].before = before,
        }
        if self.ends[slot].0 == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
        self.count -= 1;
    }

    /// When the next entries are due.
    pub fn next(&self) -> Option<u64> {
        let (tick, _) = self.first()?;
        Some(tick * self.tick)
    }

    /// Moves the entries that are due to `due`.
    pub fn take_due(&mut self, now: u64, due: &mut Vec<u32>) {
        let last = now / self.tick;
        while let Some((tick, _)) = self.first() {
            if tick > last {
                break;
            }
            let slot = (tick % SLOTS as u64) as usize;
            while self.ends[slot].0 != NONE {
                let entry = self.ends[slot].0;
                self.remove(entry);
                due.push(entry);
            }
            self.next_tick = tick + 1;
        }
        self.next_tick = self.next_tick.max(last + 1);
    }

    /// The entry that is due first by `due`, to within a tick: its time as of its last activity.
    pub fn oldest(&mut self, now: u64, due: impl Fn(u32) -> u64) -> Option<u32> {
        // Each is asked once: one that was active since it was inserted moves to another slot.
        for _ in 0..self.count {
            let (tick, entry) = self.first()?;
            let actual = due(entry);
            if actual.div_ceil(self.tick) <= tick {
                return Some(entry);
            }
            self.remove(entry);
            self.insert(entry, actual, now);
        }
        self.first().map(|(_, entry)| entry)
    }

    /// The first tick that has entries, and the first of them.
    fn first(&self) -> Option<(u64, u32)> {
        if self.count == 0 {
            return None;
        }
        let start = (self.next_tick % SLOTS as u64) as usize;
        // The word where it starts is searched twice: its bits from there on, and in the end those
        // before.
        let slot = (0..=WORDS).find_map(|i| {
            let word = (start / 64 + i) % WORDS;
            let from_start = u64::MAX << (start % 64);
            let bits = match i {
                0 => self.occupied[word] & from_start,
                WORDS => self.occupied[word] & !from_start,
                _ => self.occupied[word],
            };
            (bits != 0).then(|| word * 64 + bits.trailing_zeros() as usize)
        })?;
        let ahead = (slot + SLOTS - start) % SLOTS;
        Some((self.next_tick + ahead as u64, self.ends[slot].0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, hash_map::Entry};

    fn due(wheel: &mut TimerWheel, now: u64) -> Vec<u32> {
        let mut found = Vec::new();
        wheel.take_due(now, &mut found);
        found.sort_unstable();
        found
    }

    #[test]
    fn entries_expire_within_a_tick_after_they_are_due() {
        for timeout in [1, 7, 255, 256, 257, 1_000, 60_000, 86_400_000] {
            let mut wheel = TimerWheel::new(timeout, 1_000_000);
            let at = 1_000_000 + timeout;
            wheel.insert(3, at, 1_000_000);
            assert!(due(&mut wheel, at - 1).is_empty());
            let next = wheel.next().expect("one is in");
            assert!((at..=at + timeout / TICKS + 1).contains(&next));
            assert_eq!(due(&mut wheel, next), [3]);
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn the_oldest_entry_has_been_idle_for_longest() {
        let mut wheel = TimerWheel::new(1_000, 0);
        let mut last = [0, 10, 20];
        for flow in 0..3 {
            wheel.insert(flow, last[flow as usize] + 1_000, 20);
        }
        last[0] = 500;
        let oldest = wheel.oldest(500, |flow| last[flow as usize] + 1_000);
        assert_eq!(oldest, Some(1));
        last[1] = 600;
        last[2] = 700;
        assert_eq!(
            wheel.oldest(700, |flow| last[flow as usize] + 1_000),
            Some(0),
            "an entry that moved to another slot is still there"
        );
    }

    /// Within a tick it is the one that was inserted first.
    #[test]
    fn entries_of_one_tick_keep_their_order() {
        let mut wheel = TimerWheel::new(3_600_000, 0);
        (0..3).for_each(|flow| wheel.insert(flow, 3_600_000, 0));
        for flow in 0..3 {
            let oldest = wheel.oldest(1_000, |_| 3_600_000);
            assert_eq!(oldest, Some(flow));
            wheel.remove(flow);
        }
    }

    /// Where all entries are removed before they are due, `take_due` is never called.
    #[test]
    fn time_passes_without_expiry() {
        let mut wheel = TimerWheel::new(1_000, 0);
        wheel.insert(0, 1_000, 0);
        for now in 1..20_000 {
            let new = (now % 2) as u32;
            wheel.insert(new, now + 1_000, now);
            let oldest = wheel.oldest(now, |flow| match flow == new {
                true => now + 1_000,
                false => now + 999,
            });
            assert_eq!(oldest, Some(1 - new));
            wheel.remove(1 - new);
            let next = wheel.next().expect("one is in");
            assert!((now + 1_000..=now + 1_005).contains(&next));
        }
    }

    proptest! {
        /// Against a map from entry to time.
        #[test]
        fn it_is_a_map(
            timeout in 1u64..5_000,
            steps in prop::collection::vec(
                (0u32..40, 0u64..400, any::<bool>(), any::<bool>()),
                1..300,
            ),
        ) {
            let mut wheel = TimerWheel::new(timeout, 0);
            let mut all: HashMap<u32, u64> = HashMap::new();
            let mut now = 0;
            for (flow, step, remove, oldest) in steps {
                now += step;
                if wheel.next().is_some_and(|next| next <= now) {
                    let mut gone = Vec::new();
                    wheel.take_due(now, &mut gone);
                    for flow in gone {
                        let at = all.remove(&flow).expect("it was in");
                        prop_assert!(at <= now);
                    }
                }
                for at in all.values() {
                    prop_assert!(*at + timeout / TICKS + 1 > now, "{} is overdue at {}", at, now);
                }
                if oldest {
                    let found = wheel.oldest(now, |flow| all[&flow]);
                    let least = all.values().min();
                    prop_assert_eq!(found.is_some(), least.is_some());
                    if let (Some(found), Some(least)) = (found, least) {
                        prop_assert!(all[&found] <= least + timeout / TICKS + 1);
                    }
                }
                if remove {
                    wheel.remove(flow);
                    all.remove(&flow);
                } else if let Entry::Vacant(vacant) = all.entry(flow) {
                    wheel.insert(flow, now + timeout, now);
                    vacant.insert(now + timeout);
                }
                prop_assert_eq!(wheel.count, all.len());
            }
        }
    }
}
