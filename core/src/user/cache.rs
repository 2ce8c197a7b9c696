//! A small map that forgets: nothing is remembered for longer than its time, and never more than so many entries.
//!
//! Invariant: at most twice [`GENERATION`] entries. When the young generation is full it becomes the old one, and
//! the old one is dropped whole: no list, no sweep, every step short enough for a mutex.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Entries of one generation; two are kept, which makes 10,000.
const GENERATION: usize = 5_000;

#[derive(Debug)]
pub(super) struct Cache<K, V> {
    ttl: Duration,
    generations: Mutex<Generations<K, V>>,
}

#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, (Instant, V)>,
    old: HashMap<K, (Instant, V)>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    pub(super) fn new(ttl: Duration) -> Self {
        let generations = Generations {
            young: HashMap::new(),
            old: HashMap::new(),
        };
        Self {
            ttl,
            generations: Mutex::new(generations),
        }
    }

    /// What is remembered, and how old it is.
    pub(super) fn get(&self, key: &K) -> Option<(Duration, V)> {
        let generations = self.lock();
        let (since, value) = generations.young.get(key).or_else(|| generations.old.get(key))?;
        let age = since.elapsed();
        (age < self.ttl).then(|| (age, value.clone()))
    }

    /// Remembers what was true at `since`: the moment before it was asked for.
    pub(super) fn put(&self, key: K, since: Instant, value: V) {
        let mut generations = self.lock();
        if generations.young.len() >= GENERATION {
            generations.old = std::mem::take(&mut generations.young);
        }
        let newer = |known: &(Instant, V)| known.0 > since;
        if !generations.young.get(&key).is_some_and(newer) {
            generations.young.insert(key, (since, value));
        }
    }

    /// Forgets one.
    pub(super) fn forget(&self, key: &K) {
        let mut generations = self.lock();
        generations.young.remove(key);
        generations.old.remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Generations<K, V>> {
        // A panic elsewhere cannot leave a map half-changed here.
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_forgets() {
        let cache = Cache::new(Duration::from_secs(60));
        let now = Instant::now();
        for key in 0..50_000 {
            cache.put(key, now, key);
        }
        {
            let generations = cache.lock();
            assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
        }
        assert_eq!(cache.get(&49_999).map(|(_, value)| value), Some(49_999));
        assert!(cache.get(&0).is_none());
        cache.forget(&49_999);
        assert!(cache.get(&49_999).is_none());
        let short = Cache::new(Duration::ZERO);
        short.put(1, now, 1);
        assert!(short.get(&1).is_none());
    }

    #[test]
    fn an_older_answer_does_not_replace_a_newer_one() {
        let cache = Cache::new(Duration::from_secs(60));
        let earlier = Instant::now();
        let later = earlier + Duration::from_millis(1);
        cache.put("a", later, 2);
        cache.put("a", earlier, 1);
        assert_eq!(cache.get(&"a").map(|(_, value)| value), Some(2));
    }
}
