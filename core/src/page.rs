//! Keyset pages: a list is cut after `limit` rows and goes on behind the last key, so it stays stable under writes.

/// Rows of one page and whether there are more behind them.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// At most as many as were asked for.
    pub rows: Vec<T>,
    /// Whether at least one more row follows.
    pub more: bool,
}

impl<T> Page<T> {
    /// From `limit + 1` fetched rows.
    pub fn cut(mut rows: Vec<T>, limit: i64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(0);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Self { rows, more }
    }

    /// The same page of other values.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page {
            rows: self.rows.into_iter().map(f).collect(),
            more: self.more,
        }
    }
}
