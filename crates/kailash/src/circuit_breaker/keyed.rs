//! Breakers by key: one for each host, tenant or shard, however many there are.

mod series;

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use indexmap::{Equivalent, IndexSet};
use kailash_core::config::{in_range, positive};
use kailash_core::time::Timestamp;

use super::context::Context;
use super::{CircuitBreaker, Config, Counts, State};
use crate::{ConfigError, histogram};
use series::Listed;
pub use series::{KeyCounts, Series};

/// The breakers of one group, one per key, shared by its clones: see
/// [`Manager::keyed`](super::Manager::keyed).
///
/// One bad host of ten is refused, the other nine are not. A breaker is called `GROUP/KEY`, is made
/// when its key is first asked for, and is forgotten when its key has not been asked for in a while,
/// much later if its window holds failures or slow calls that may yet trip it, or if it waits for a
/// probe. It is never forgotten while it is open, while somebody holds it (so while a call is in
/// flight), or while it is in a state that somebody told it to be in, or that it came to only because
/// somebody enabled it. Behind a tower layer each thread holds the breaker whose call ended last on it,
/// until a call of another ends there or the thread does.
///
/// ```
/// use kailash::circuit_breaker::{KeyedConfig, Manager, State};
///
/// let hosts = Manager::new().keyed("host", KeyedConfig::default())?;
/// for _ in 0..5 {
///     let _ = hosts.get("10.0.0.7").call_sync(|| Err::<(), _>("refused"));
/// }
/// assert_eq!(hosts.get("10.0.0.7").state(), State::Open);
/// assert_eq!(hosts.get("10.0.0.8").state(), State::Closed);
/// # Ok::<(), kailash::circuit_breaker::CreateError>(())
/// ```
#[derive(Clone)]
pub struct Keyed(Arc<Group>);

/// The settings of a group of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyedConfig {
    /// The settings of each breaker.
    pub breaker: Config,
    /// How many closed breakers are kept, and how many others besides: 1 to 16,777,216, default
    /// 1,000,000. An insertion beyond it looks at a few, and forgets the one that was idle longest: of
    /// the closed, one with failures or slow calls in its window only if all of them have some; of the
    /// others, a half-open one. Breakers that must not be forgotten may take the group beyond it.
    pub capacity: u32,
    /// A key that was not asked for in this long is forgotten: above zero, default 10 min.
    pub idle_timeout: Duration,
    /// How long a key is remembered for the failures and slow calls in its window, or for an opening
    /// whose wait is over, after it was last asked for: default 24 h; less than `idle_timeout` counts
    /// as equal. Beyond `capacity` they go sooner.
    pub failures_kept: Duration,
    /// Keys with a metric series of their own, the rest being one: 0 to 1,000, default 20.
    pub series: u32,
}

impl Default for KeyedConfig {
    fn default() -> Self {
        Self {
            breaker: Config::default(),
            capacity: 1_000_000,
            idle_timeout: Duration::from_secs(600),
            failures_kept: Duration::from_secs(24 * 3600),
            series: 20,
        }
    }
}

impl KeyedConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// Names the first field that is out of range, its value and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.breaker.validate()?;
        in_range("capacity", self.capacity, 1..=1 << 24)?;
        positive("idle_timeout", self.idle_timeout)?;
        in_range("series", self.series, 0..=1000)?;
        Ok(())
    }

    /// The fields in which two configs differ: name, value here, value there.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let mut differences = self.breaker.differences(&other.breaker);
        let own = self.fields().into_iter().zip(other.fields());
        differences.extend(
            own.filter(|((_, here), (_, there))| here != there)
                .map(|((field, here), (_, there))| (field, here, there)),
        );
        differences
    }

    fn fields(&self) -> [(&'static str, String); 4] {
        let Self {
            breaker: _,
            capacity,
            idle_timeout,
            failures_kept,
            series,
        } = self;
        [
            ("capacity", capacity.to_string()),
            ("idle_timeout", format!("{idle_timeout:?}")),
            ("failures_kept", format!("{failures_kept:?}")),
            ("series", series.to_string()),
        ]
    }
}

/// A group of keys at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedSnapshot {
    /// Keys that have a breaker now.
    pub keys: usize,
    /// Keys whose breaker is open, forced open too.
    pub open: usize,
    /// Keys whose breaker is half-open.
    pub half_open: usize,
    /// Breakers that were forgotten since the group was made.
    pub forgotten: u64,
    /// What all keys together have counted since the group was made, the forgotten ones too.
    pub counts: Counts,
}

pub(super) struct Group {
    name: Arc<str>,
    context: Arc<Context>,
    settings: Mutex<Settings>,
    hasher: RandomState,
    shards: Box<[Shard]>,
    sizes: Arc<Sizes>,
    listed: Mutex<Listed>,
}

#[derive(Clone)]
struct Settings {
    config: KeyedConfig,
    /// The same as `config.breaker`, as all breakers share it.
    breaker: Arc<Config>,
}

/// How many keys a group has, in all its shards.
#[derive(Default)]
struct Sizes {
    keys: AtomicUsize,
    set_aside: AtomicUsize,
}

impl Sizes {
    fn keys(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    fn set_aside(&self) -> usize {
        self.set_aside.load(Ordering::Relaxed)
    }
}

/// A line of its own, so that two shards' locks do not share one.
#[repr(align(64))]
struct Shard(RwLock<Entries>);

struct Entries {
    /// First those that are set aside: what was found there is not closed or is held. They make no
    /// room and need none, so that many of them do not push the closed ones out.
    entries: IndexSet<Entry, BuildPassed>,
    set_aside: usize,
    /// Where the next look for idle entries begins.
    hand: usize,
    /// Where an entry that makes room was last looked for, as a share of a whole of 2^64.
    place: u64,
    forgotten: u64,
    /// What the forgotten breakers had counted.
    forgotten_counts: Counts,
    /// Forgotten under the lock that is held: [`Shard::change`] drops them once it is free.
    gone: Vec<Entry>,
    sizes: Arc<Sizes>,
}

/// What is lost with an entry that is forgotten, the least first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    Nothing,
    /// Failures or slow calls in its window, which may yet trip it.
    Evidence,
    /// That the next calls have to be probes.
    Opening,
    /// An opening that is not over, a probe or a call in flight, or what somebody told it.
    TooMuch,
}

impl Loss {
    fn sets_aside(self) -> bool {
        self >= Self::Opening
    }
}

struct Entry {
    breaker: CircuitBreaker,
    hash: u64,
    /// When the key was last asked for, in nanoseconds.
    used: AtomicU64,
}

impl Entry {
    fn key(&self) -> &str {
        &self.breaker.name()[self.breaker.0.context.prefix..]
    }

    fn idle(&self, now: Timestamp) -> Duration {
        now.since(Timestamp::from_nanos(self.used.load(Ordering::Relaxed)))
    }

    fn touch(&self, now: Timestamp) {
        self.used.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// What is lost if the entry is forgotten. Asked under the shard's write lock, where nobody can
    /// come to hold it meanwhile.
    fn loss(&self, now: Timestamp, config: &KeyedConfig) -> Loss {
        if Arc::strong_count(&self.breaker.0) > 1 {
            return Loss::TooMuch;
        }
        // What was done by whoever held it last is seen from here on.
        fence(Ordering::Acquire);
        let seen = self.breaker.0.machine.snapshot(now);
        let is_told = match config.breaker.initial_state {
            State::Closed => false,
            State::Open | State::HalfOpen => self.breaker.was_told_to_close(),
            // None leaves these but by an order, whatever it has come through since then.
            State::Disabled | State::MetricsOnly => !self.breaker.is_as_made(),
        };
        match seen.state {
            State::HalfOpen | State::Closed if is_told => return Loss::TooMuch,
            State::HalfOpen if seen.probes_in_flight == 0 => return Loss::Opening,
            State::Closed => {}
            // Nobody told it: the next of this key begins so too.
            State::Disabled | State::MetricsOnly if self.breaker.is_as_made() => {}
            _ => return Loss::TooMuch,
        }
        let evidence = [
            seen.window_failures,
            seen.window_slow,
            seen.consecutive_failures,
        ];
        if evidence == [0; 3] {
            return Loss::Nothing;
        }
        Loss::Evidence
    }
}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

/// A key with its hash, which was computed to find the shard.
struct Key<'k> {
    key: &'k str,
    hash: u64,
}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Entry> for Key<'_> {
    fn equivalent(&self, entry: &Entry) -> bool {
        self.key == entry.key()
    }
}

/// Passes a hash on that was computed before.
#[derive(Default)]
struct Passed(u64);

type BuildPassed = BuildHasherDefault<Passed>;

impl Hasher for Passed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("entries and keys write one hash");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const MOST_SHARDS: usize = 64;
/// How many entries an insertion looks at, so that idle ones go without a task of their own.
const LOOKS: usize = 8;
/// Among how many one must go where there is no room.
const SAMPLE: usize = 16;

impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the entries under the lock, and drops those that were forgotten once it is free: the
    /// end of a breaker wakes those who listen to it, and their wakers may ask for its group.
    fn change<R>(&self, change: impl FnOnce(&mut Entries) -> R) -> R {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut entries);
        let gone = mem::take(&mut entries.gone);
        drop(entries);
        drop(gone);
        result
    }
}

impl Entries {
    fn new(sizes: &Arc<Sizes>) -> Self {
        Self {
            entries: IndexSet::default(),
            set_aside: 0,
            hand: 0,
            place: 0,
            forgotten: 0,
            forgotten_counts: Counts::default(),
            gone: Vec::new(),
            sizes: Arc::clone(sizes),
        }
    }

    /// Forgets those of the next `looks` entries that were idle too long.
    fn sweep(&mut self, looks: usize, now: Timestamp, config: &KeyedConfig) {
        for _ in 0..looks.min(self.entries.len()) {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            self.look(now, config);
        }
    }

    /// Forgets all that were idle too long.
    fn sweep_all(&mut self, now: Timestamp, config: &KeyedConfig) {
        self.hand = 0;
        while self.hand < self.entries.len() {
            self.look(now, config);
        }
    }

    /// Looks at the entry at the hand. If it goes or moves, the next has its place, else the hand
    /// moves on.
    fn look(&mut self, now: Timestamp, config: &KeyedConfig) {
        let is_aside = self.hand < self.set_aside;
        let Some(entry) = self.entries.get_index(self.hand) else {
            return;
        };
        let idle = entry.idle(now);
        if idle < config.idle_timeout && !is_aside {
            self.hand += 1;
            return;
        }
        let loss = entry.loss(now, config);
        let kept_for = match loss {
            Loss::Nothing => config.idle_timeout,
            Loss::Evidence | Loss::Opening => config.failures_kept.max(config.idle_timeout),
            Loss::TooMuch => Duration::MAX,
        };
        if idle >= kept_for {
            self.forget(self.hand);
        } else if loss.sets_aside() != is_aside {
            self.change_sides(self.hand);
        } else {
            self.hand += 1;
        }
    }

    /// Makes room where there is none: on the side of the closed, and on that of the others.
    fn make_room(&mut self, now: Timestamp, config: &KeyedConfig) {
        let capacity = config.capacity as usize;
        if self.sizes.set_aside() > capacity {
            self.make_room_among(0..self.set_aside, now, config);
        }
        if self.sizes.keys().saturating_sub(self.sizes.set_aside()) >= capacity {
            self.make_room_among(self.set_aside..self.entries.len(), now, config);
        }
    }

    /// Looks at a few from all over one side, first at the one that was idle longest, until one goes:
    /// to the other side if it belongs there, else for good. One with evidence goes if no other does.
    fn make_room_among(&mut self, side: Range<usize>, now: Timestamp, config: &KeyedConfig) {
        let len = side.len();
        let is_aside = side.start < self.set_aside;
        let mut sample = [(Duration::ZERO, 0); SAMPLE];
        let sample = &mut sample[..SAMPLE.min(len)];
        for (look, place) in sample.iter_mut().enumerate() {
            // Where there are only a few, each is looked at.
            let offset = if len > SAMPLE {
                self.somewhere(len)
            } else {
                look
            };
            let at = side.start + offset;
            *place = (self.entries[at].idle(now), at);
        }
        sample.sort_unstable_by_key(|&(idle, _)| Reverse(idle));
        let mut with_evidence = None;
        for &(_, at) in &*sample {
            let loss = self.entries[at].loss(now, config);
            if loss.sets_aside() != is_aside {
                return self.change_sides(at);
            }
            match loss {
                Loss::Nothing | Loss::Opening => return self.forget(at),
                Loss::Evidence => with_evidence = with_evidence.or(Some(at)),
                Loss::TooMuch => {}
            }
        }
        if let Some(at) = with_evidence {
            self.forget(at);
        }
    }

    /// A place below `len`, each time another one, so that any few in a row lie evenly over it.
    fn somewhere(&mut self, len: usize) -> usize {
        // Steps by the golden section.
        self.place = self.place.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(self.place) * len as u128) >> 64) as usize
    }

    fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry);
        self.sizes.keys.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets an entry aside, or takes it back. Another has its place then.
    fn change_sides(&mut self, index: usize) {
        if index < self.set_aside {
            self.set_aside -= 1;
            self.sizes.set_aside.fetch_sub(1, Ordering::Relaxed);
            self.entries.swap_indices(index, self.set_aside);
        } else {
            self.entries.swap_indices(index, self.set_aside);
            self.set_aside += 1;
            self.sizes.set_aside.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets an entry. Another has its place then.
    fn forget(&mut self, index: usize) {
        let index = if index < self.set_aside {
            self.change_sides(index);
            self.set_aside
        } else {
            index
        };
        if let Some(entry) = self.entries.swap_remove_index(index) {
            self.sizes.keys.fetch_sub(1, Ordering::Relaxed);
            self.forgotten += 1;
            self.forgotten_counts = self.forgotten_counts + entry.breaker.counts();
            self.gone.push(entry);
        }
    }
}

impl Group {
    pub(super) fn keyed(
        name: &str,
        config: KeyedConfig,
        context: &Context,
    ) -> Result<Keyed, ConfigError> {
        config.validate()?;
        // With few keys a shard each would fill unevenly.
        let shards = (config.capacity as usize / 64).next_power_of_two();
        let breaker = Arc::new(config.breaker.clone());
        let sizes = Arc::new(Sizes::default());
        Ok(Keyed(Arc::new(Self {
            name: name.into(),
            context: Arc::new(context.of_group(name.len() + 1)),
            settings: Mutex::new(Settings { config, breaker }),
            hasher: RandomState::new(),
            shards: (0..shards.min(MOST_SHARDS))
                .map(|_| Shard(RwLock::new(Entries::new(&sizes))))
                .collect(),
            sizes,
            listed: Mutex::default(),
        })))
    }

    fn settings(&self) -> Settings {
        let settings = self.settings.lock();
        settings.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn breaker_settings(&self) -> Arc<Config> {
        let settings = self.settings.lock();
        Arc::clone(&settings.unwrap_or_else(PoisonError::into_inner).breaker)
    }

    fn find<'k>(&self, key: &'k str) -> (&Shard, Key<'k>) {
        let hash = self.hasher.hash_one(key);
        // The maps use the highest and the lowest bits.
        let shard = (hash >> 32) as usize & (self.shards.len() - 1);
        (&self.shards[shard], Key { key, hash })
    }

    #[cold]
    fn create(&self, shard: &Shard, key: &Key<'_>, now: Timestamp) -> CircuitBreaker {
        shard.change(|entries| {
            if let Some(entry) = entries.entries.get(key) {
                return entry.breaker.clone();
            }
            // Read under the shard's lock: `reconfigure` sets them first and goes through the shards
            // then, so that no breaker keeps older ones.
            let Settings { config, breaker } = self.settings();
            let name = format!("{}/{}", self.name, key.key).into();
            let breaker = CircuitBreaker::within(Arc::clone(&self.context), name, breaker);
            let breaker = breaker.expect("a group's settings are checked");
            entries.sweep(LOOKS, now, &config);
            // Two for one, until a group that grew beyond its capacity is back within it.
            for _ in 0..2 {
                entries.make_room(now, &config);
            }
            entries.insert(Entry {
                breaker: breaker.clone(),
                hash: key.hash,
                used: AtomicU64::new(now.as_nanos()),
            });
            breaker.mind_calls_if_wanted();
            breaker
        })
    }
}

impl Keyed {
    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// The settings as they are now.
    #[must_use]
    pub fn config(&self) -> KeyedConfig {
        self.0.settings().config
    }

    /// The breaker of this key, made if there is none.
    ///
    /// Ask for it again for each call rather than keep it: a breaker that is held is not forgotten.
    #[must_use]
    pub fn get(&self, key: &str) -> CircuitBreaker {
        let now = self.0.context.clock.now();
        let (shard, key) = self.0.find(key);
        if let Some(entry) = shard.read().entries.get(&key) {
            entry.touch(now);
            return entry.breaker.clone();
        }
        let made = self.0.create(shard, &key, now);
        made.make_appointments();
        made
    }

    /// The breaker of this key, if there is one. To ask is no use of the key.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<CircuitBreaker> {
        let (shard, key) = self.0.find(key);
        let entries = shard.read();
        entries.entries.get(&key).map(|entry| entry.breaker.clone())
    }

    /// How many keys have a breaker now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.sizes.keys()
    }

    /// Whether no key has a breaker now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the breaker of this key, whatever its state. Whoever holds it can go on using it.
    pub fn remove(&self, key: &str) -> Option<CircuitBreaker> {
        let (shard, key) = self.0.find(key);
        shard.change(|entries| {
            let (index, entry) = entries.entries.get_full(&key)?;
            let breaker = entry.breaker.clone();
            entries.forget(index);
            Some(breaker)
        })
    }

    /// Forgets all keys that were idle too long, and answers how many. Insertions do so bit by bit,
    /// so only a group that gets no new keys may want to be told.
    pub fn forget_idle(&self) -> usize {
        let now = self.0.context.clock.now();
        let config = self.config();
        let mut forgotten = 0;
        for shard in &self.0.shards {
            forgotten += shard.change(|entries| {
                let before = entries.entries.len();
                entries.sweep_all(now, &config);
                let left = entries.entries.len();
                entries.entries.shrink_to(left * 2);
                before - left
            });
        }
        forgotten
    }

    /// Changes the settings of all breakers, those to come too; they keep their states and counts.
    ///
    /// # Errors
    /// When a field is out of range; nothing has changed then.
    #[expect(clippy::missing_panics_doc, reason = "the settings are checked first")]
    pub fn reconfigure(&self, config: KeyedConfig) -> Result<(), ConfigError> {
        config.validate()?;
        let breaker = Arc::new(config.breaker.clone());
        let settings = self.0.settings.lock();
        *settings.unwrap_or_else(PoisonError::into_inner) = Settings { config, breaker };
        self.for_each(|each| {
            // The newest, which may be another call's by now: that one is the later for all breakers.
            let changed = each.reconfigure_to(|| self.0.breaker_settings());
            changed.expect("the settings were checked");
        });
        Ok(())
    }

    /// Closes all breakers from any state and forgets their counts.
    pub fn reset_all(&self) {
        self.for_each(CircuitBreaker::reset);
        if let Some(durations) = &self.0.context.shared_durations {
            durations.reset();
        }
    }

    /// As [`CircuitBreaker::abandon_probes`], for all keys. It waits for ever itself if another thread
    /// was making or forgetting a key at the moment of the fork.
    pub fn abandon_probes(&self) {
        self.for_each(CircuitBreaker::abandon_probes);
    }

    /// What all keys together are at this moment. It looks at each.
    #[must_use]
    pub fn snapshot(&self) -> KeyedSnapshot {
        let mut seen = KeyedSnapshot {
            keys: 0,
            open: 0,
            half_open: 0,
            forgotten: 0,
            counts: Counts::default(),
        };
        let now = self.0.context.clock.now();
        for shard in &self.0.shards {
            // Both under one lock: a breaker is counted once, as one that lives or as forgotten.
            let entries = shard.read();
            seen.forgotten += entries.forgotten;
            seen.counts = seen.counts + entries.forgotten_counts;
            for entry in &entries.entries {
                seen.keys += 1;
                seen.counts = seen.counts + entry.breaker.counts();
                match entry.breaker.0.machine.state(now) {
                    State::Open => seen.open += 1,
                    State::HalfOpen => seen.half_open += 1,
                    State::Closed | State::Disabled | State::MetricsOnly => {}
                }
            }
        }
        seen
    }

    /// How long the calls of all keys together took since the last [`Keyed::reset_all`]: empty unless
    /// the manager was told to [record durations](super::Manager::record_durations).
    #[must_use]
    pub fn durations(&self) -> histogram::Snapshot {
        let shared = self.0.context.shared_durations.as_ref();
        shared.map_or_else(histogram::Snapshot::default, |shared| shared.since_reset())
    }

    /// As [`Keyed::durations`], but no reset sets it back: this is for metrics.
    #[must_use]
    pub fn all_durations(&self) -> histogram::Snapshot {
        let shared = self.0.context.shared_durations.as_ref();
        shared.map_or_else(histogram::Snapshot::default, |shared| {
            shared.histogram.snapshot()
        })
    }

    /// Shows each breaker, with no lock held.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&CircuitBreaker)) {
        for shard in &self.0.shards {
            let breakers: Vec<CircuitBreaker> = {
                let entries = shard.read();
                let entries = entries.entries.iter();
                entries.map(|entry| entry.breaker.clone()).collect()
            };
            breakers.iter().for_each(&mut visit);
        }
    }
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("name", &self.0.name)
            .field("keys", &self.len())
            .finish_non_exhaustive()
    }
}
