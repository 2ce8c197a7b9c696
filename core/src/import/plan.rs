//! What becomes of the rows of a chunk: which are made, which are duplicates, which their holders may not have.
//!
//! Invariant: rows are decided in the order of the file, each as if the ones before it had been written, so where a
//! chunk ends changes nothing. Nothing can change meanwhile: codes are added only under the row lock of the book's draw,
//! and allowances are locked, too.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    chunk::Numbered,
    row::{Fault, Row},
};
use crate::error::Result;

/// What a chunk comes to.
#[derive(Default)]
pub(super) struct Plan {
    /// Rows to be made, each with who gets it at once.
    pub(super) made: Vec<Numbered<Row>>,
    /// What the others are refused for, by record.
    pub(super) faults: Vec<(usize, Fault)>,
    /// How many more coupons users get, by user.
    pub(super) shares: HashMap<Uuid, i32>,
}

/// What is known of the database when a chunk is decided.
#[derive(Default)]
pub(super) struct Known {
    /// Codes that exist, and whether this import made them.
    codes: HashMap<String, bool>,
    /// Users by e-mail address as the rows spell it.
    users: HashMap<String, User>,
    /// How many coupons users hold.
    held: HashMap<Uuid, i64>,
    max_per_user: Option<i64>,
}

struct User {
    id: Uuid,
    disabled: bool,
}

/// Whether codes are looked for in the book before a chunk is decided.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// They are taken for new; writing one that is not fails.
    None,
    /// Each one.
    Each,
}

/// The import that is under way.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) job_id: Uuid,
    pub(super) book_id: Uuid,
    pub(super) max_per_user: Option<i32>,
    /// The times at which this import wrote chunks, ascending.
    pub(super) written_at: &'a [DateTime<Utc>],
}

impl Known {
    /// Reads what decides the rows, locking the allowances of their holders in the order of their ids.
    pub(super) async fn read(
        connection: &mut PgConnection,
        scope: Scope<'_>,
        rows: &[Numbered<Row>],
        lookup: Lookup,
    ) -> Result<Self> {
        let mut known = Self {
            max_per_user: scope.max_per_user.map(i64::from),
            ..Self::default()
        };
        known.read_users(connection, scope, rows).await?;
        if lookup == Lookup::None {
            return Ok(known);
        }
        let keys: Vec<&str> = rows.iter().map(|numbered| numbered.row.key()).collect();
        // One look into the primary key per code: OFFSET 0 keeps the planner from turning it into a scan of the book.
        let found: Vec<(String, DateTime<Utc>)> = sqlx::query_as(
            "SELECT k.key, c.created_at FROM unnest($2::text[]) AS k (key),
                 LATERAL (SELECT created_at FROM coupons WHERE book_id = $1 AND code_key = k.key OFFSET 0) AS c",
        )
        .bind(scope.book_id)
        .bind(&keys)
        .fetch_all(&mut *connection)
        .await?;
        for (key, created_at) in found {
            // The moment of a chunk is its own in the book, so it tells whose coupon this is.
            known.codes.insert(key, scope.written_at.contains(&created_at));
        }
        Ok(known)
    }

    /// Adds what a validating pass has met before.
    pub(super) async fn read_seen(
        &mut self,
        connection: &mut PgConnection,
        scope: Scope<'_>,
        rows: &[Numbered<Row>],
    ) -> Result<()> {
        let mut keys: Vec<String> = rows
            .iter()
            .map(|numbered| format!("c{}", numbered.row.key()))
            .collect();
        keys.extend(self.users.values().map(|user| format!("u{}", user.id)));
        let seen: Vec<(String, i32)> = sqlx::query_as(
            "SELECT k.key, s.count FROM unnest($2::text[]) AS k (key),
                 LATERAL (SELECT count FROM import_seen WHERE job_id = $1 AND key = k.key OFFSET 0) AS s",
        )
        .bind(scope.job_id)
        .bind(&keys)
        .fetch_all(connection)
        .await?;
        let seen: HashMap<String, i32> = seen.into_iter().collect();
        for (key, count) in &seen {
            if let Some(code) = key.strip_prefix('c') {
                self.codes.entry(code.to_owned()).or_insert(true);
            } else if let Some(user) = key.strip_prefix('u').and_then(|text| text.parse().ok()) {
                *self.held.entry(user).or_default() += i64::from(*count);
            }
        }
        Ok(())
    }

    async fn read_users(
        &mut self,
        connection: &mut PgConnection,
        scope: Scope<'_>,
        rows: &[Numbered<Row>],
    ) -> Result<()> {
        let emails: BTreeSet<&str> = rows.iter().filter_map(|numbered| numbered.row.email()).collect();
        if emails.is_empty() {
            return Ok(());
        }
        let emails: Vec<&str> = emails.into_iter().collect();
        let users: Vec<(String, Uuid, bool)> = sqlx::query_as(
            "SELECT e.email, u.id, u.disabled FROM unnest($1::text[]) AS e (email),
                 LATERAL (SELECT id, disabled_at IS NOT NULL AS disabled FROM users
                          WHERE lower(users.email) = lower(e.email) OFFSET 0) AS u",
        )
        .bind(&emails)
        .fetch_all(&mut *connection)
        .await?;
        for (email, id, disabled) in users {
            self.users.insert(email, User { id, disabled });
        }
        let ids: BTreeSet<Uuid> = self.users.values().map(|user| user.id).collect();
        let ids: Vec<Uuid> = ids.into_iter().collect();
        let held: Vec<(Uuid, i32)> = sqlx::query_as(
            "SELECT user_id, assigned_count FROM user_allowances
             WHERE book_id = $1 AND user_id = ANY($2::uuid[]) ORDER BY user_id FOR UPDATE",
        )
        .bind(scope.book_id)
        .bind(&ids)
        .fetch_all(connection)
        .await?;
        // Somebody without a row holds nothing; nobody else can make the row meanwhile, since assignments hold the draw.
        self.held
            .extend(held.into_iter().map(|(user, count)| (user, i64::from(count))));
        Ok(())
    }

    /// Decides the rows in order.
    pub(super) fn decide(mut self, mut rows: Vec<Numbered<Row>>) -> Plan {
        let mut plan = Plan::default();
        let mut holders: Vec<(usize, Uuid)> = Vec::new();
        let mut made: HashSet<&str> = HashSet::with_capacity(rows.len());
        for (index, Numbered { record, row }) in rows.iter().enumerate() {
            let own = match self.codes.get(row.key()) {
                Some(own) => Some(*own),
                None => made.contains(row.key()).then_some(true),
            };
            let holder = match own {
                Some(own) => Err(duplicate(own)),
                None => self.admit(row.email()),
            };
            match holder {
                Ok(holder) => {
                    made.insert(row.key());
                    if let Some(user) = holder {
                        *self.held.entry(user).or_default() += 1;
                        *plan.shares.entry(user).or_default() += 1;
                        holders.push((index, user));
                    }
                }
                Err(fault) => plan.faults.push((*record, fault)),
            }
        }
        for (index, user) in holders {
            rows[index].row.set_holder(user);
        }
        let mut faults = plan.faults.iter().peekable();
        rows.retain(|numbered| faults.next_if(|(record, _)| *record == numbered.record).is_none());
        plan.made = rows;
        plan
    }

    /// Whether whoever is to hold the coupon may.
    fn admit(&self, email: Option<&str>) -> Result<Option<Uuid>, Fault> {
        let Some(email) = email else { return Ok(None) };
        let fault = |reason, detail: &'static str| Err(Fault::new(None, reason, detail));
        let Some(user) = self.users.get(email) else {
            return fault("unknown_user", "No user has this e-mail address.");
        };
        if user.disabled {
            return fault("user_disabled", "The user's account is disabled.");
        }
        let held = self.held.get(&user.id).copied().unwrap_or(0);
        if self.max_per_user.is_some_and(|max| held >= max) {
            return fault(
                "assignment_limit_reached",
                "The user would hold more coupons of this book than it allows.",
            );
        }
        Ok(Some(user.id))
    }
}

/// The reason of a row whose code this import has made before.
pub(super) const DUPLICATE_IN_FILE: &str = "duplicate_in_file";

/// The reason of a row whose code the book had.
pub(super) const DUPLICATE_IN_BOOK: &str = "duplicate_in_book";

fn duplicate(own: bool) -> Fault {
    if own {
        Fault::new(
            None,
            DUPLICATE_IN_FILE,
            "An earlier line of the file has this code.",
        )
    } else {
        Fault::new(None, DUPLICATE_IN_BOOK, "The book has this code already.")
    }
}
