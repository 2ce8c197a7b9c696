//! From a code that somebody typed to the coupon it means, among those that exist for them.
//!
//! Invariant: somebody else's coupon and no coupon give the same answer.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Behalf, CouponId, code::Code as CouponCode};
use crate::{
    db::Db,
    error::{Code, Refusal, Result, StoreError},
};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Which coupon.
    pub coupon: CouponId,
    /// Who held it at that moment.
    pub holder: Option<Uuid>,
}

/// A row: book, key, holder.
type Row = (Uuid, String, Option<Uuid>);

/// A code in one book ($1): exact ($2) or folded ($3) as the book says, held by $4 if that is given.
pub const IN_BOOK: &str = "SELECT c.book_id, c.code_key, c.assigned_user_id FROM books b
     JOIN coupons c ON c.book_id = b.id AND c.code_key = CASE WHEN b.exact_codes THEN $2 ELSE $3 END
     WHERE b.id = $1 AND ($4::uuid IS NULL OR c.assigned_user_id = $4)";

/// A code to be found in a named book.
#[derive(Debug, Clone)]
pub struct InBook {
    /// The book.
    pub book_id: Uuid,
    /// The code as it was written.
    pub code: CouponCode,
    /// The holder, if only theirs counts.
    pub holder: Option<Uuid>,
}

/// Codes in named books, each as [`IN_BOOK`] finds it, with its place in the list.
pub const IN_BOOKS: &str = "SELECT a.place, c.book_id, c.code_key, c.assigned_user_id
     FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[]) WITH ORDINALITY AS a (book_id, exact, folded, holder, place)
     CROSS JOIN LATERAL (SELECT id, exact_codes FROM books WHERE id = a.book_id LIMIT 1) AS b
     CROSS JOIN LATERAL (
         SELECT book_id, code_key, assigned_user_id FROM coupons
         WHERE book_id = b.id AND code_key = CASE WHEN b.exact_codes THEN a.exact ELSE a.folded END
         LIMIT 1) AS c
     WHERE a.holder IS NULL OR c.assigned_user_id = a.holder";

/// Finds codes in named books, in one statement for many callers; `None` where there is none.
///
/// # Errors
/// When the database fails.
pub async fn in_books(db: Db, asked: Vec<InBook>) -> Result<Vec<Option<Located>>, StoreError> {
    let keys = |exact: bool| asked.iter().map(|one| one.code.key(exact)).collect::<Vec<_>>();
    let rows: Vec<(i64, Uuid, String, Option<Uuid>)> = sqlx::query_as(IN_BOOKS)
        .bind(asked.iter().map(|one| one.book_id).collect::<Vec<_>>())
        .bind(keys(true))
        .bind(keys(false))
        .bind(asked.iter().map(|one| one.holder).collect::<Vec<_>>())
        .fetch_all(db.pool())
        .await?;
    let mut found = vec![None; asked.len()];
    for (place, book_id, code_key, holder) in rows {
        if let Some(slot) = usize::try_from(place - 1)
            .ok()
            .and_then(|index| found.get_mut(index))
        {
            let coupon = CouponId { book_id, code_key };
            *slot = Some(Located { coupon, holder });
        }
    }
    Ok(found)
}

/// A code among what a user ($1) holds.
pub const OF_HOLDER: &str =
    "SELECT c.book_id, c.code_key, c.assigned_user_id FROM coupons c JOIN books b ON b.id = c.book_id
     WHERE c.assigned_user_id = $1 AND c.code_key IN ($2, $3)
       AND c.code_key = CASE WHEN b.exact_codes THEN $2 ELSE $3 END
     LIMIT 2";

/// A code in any book that is not archived, each probed by its primary key.
pub const ANYWHERE: &str = "SELECT c.book_id, c.code_key, c.assigned_user_id FROM books b
     CROSS JOIN LATERAL (
         SELECT book_id, code_key, assigned_user_id FROM coupons
         WHERE book_id = b.id AND code_key = CASE WHEN b.exact_codes THEN $1 ELSE $2 END
         LIMIT 1) c
     WHERE b.status <> 'archived' LIMIT 2";

/// A code that may be given away; to a plain user ($4) only out of a book of self-service.
pub const FOR_ASSIGNMENT: &str = "SELECT c.book_id, c.code_key, c.assigned_user_id FROM books b
     CROSS JOIN LATERAL (
         SELECT book_id, code_key, assigned_user_id FROM coupons
         WHERE book_id = b.id AND code_key = CASE WHEN b.exact_codes THEN $1 ELSE $2 END
         LIMIT 1) c
     WHERE CASE WHEN $3::uuid IS NULL THEN b.status <> 'archived' ELSE b.id = $3 END
       AND (NOT $4 OR b.self_service) LIMIT 2";

/// Finds the one coupon that `code` means for `behalf`, in `book_id` if it is given.
///
/// Holders are found through what they hold. For others each book that is not archived is probed by its primary key,
/// so there is no index that spans books.
///
/// # Errors
/// `not_found`, `code_ambiguous`.
pub async fn locate(
    connection: &mut PgConnection,
    behalf: Behalf,
    code: &CouponCode,
    book_id: Option<Uuid>,
) -> Result<Located> {
    let (exact, folded) = (code.key(true), code.key(false));
    let rows: Vec<Row> = match (behalf, book_id) {
        (_, Some(book_id)) => {
            sqlx::query_as(IN_BOOK)
                .bind(book_id)
                .bind(exact)
                .bind(folded)
                .bind(behalf.holder())
                .fetch_all(connection)
                .await?
        }
        (Behalf::Holder(user_id), None) => {
            sqlx::query_as(OF_HOLDER)
                .bind(user_id)
                .bind(exact)
                .bind(folded)
                .fetch_all(connection)
                .await?
        }
        (Behalf::Anybody, None) => {
            sqlx::query_as(ANYWHERE)
                .bind(exact)
                .bind(folded)
                .fetch_all(connection)
                .await?
        }
    };
    only(rows)
}

/// The same for giving a code away: a plain user finds only what is open to self-service.
///
/// # Errors
/// `not_found`, `code_ambiguous`.
pub async fn locate_for_assignment(
    connection: &mut PgConnection,
    as_user: bool,
    code: &CouponCode,
    book_id: Option<Uuid>,
) -> Result<CouponId> {
    let rows: Vec<Row> = sqlx::query_as(FOR_ASSIGNMENT)
        .bind(code.key(true))
        .bind(code.key(false))
        .bind(book_id)
        .bind(as_user)
        .fetch_all(connection)
        .await?;
    Ok(only(rows)?.coupon)
}

fn only(rows: Vec<Row>) -> Result<Located> {
    let mut rows = rows.into_iter();
    match (rows.next(), rows.next()) {
        (None, _) => Err(Refusal::not_found().into()),
        (Some((book_id, code_key, holder)), None) => Ok(Located {
            coupon: CouponId { book_id, code_key },
            holder,
        }),
        (Some(_), Some(_)) => Err(Refusal::new(
            Code::CodeAmbiguous,
            "More than one book holds this code; say which with book_id.",
        )
        .into()),
    }
}
