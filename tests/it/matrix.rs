//! Every state of a coupon against every action, over HTTP: the exact answer, the row afterwards, the events written.
//!
//! The tables are the rules of docs/api.md in the form of cells. A cell is a refusal's code (then nothing at all may
//! have changed), `same` (a success that changes nothing), or the state afterwards and the events, one letter each.
//! States are laid down straight in SQL and time is moved by the rows' own timestamps, so nothing here waits.
//! To add an action: a row in each table, an arm in `Scene::act`.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be read from the database fails the test"
)]

mod renewals;
mod scene;

use self::scene::{LOCK_WANTED, NO_LOCK_WANTED, Scene, Stage};

/// The token of the lock that a stage begins with.
const GOOD: &str = "cbl_good-token-of-the-last-lock";

const UNKNOWN: &str = "cbl_a-token-that-nobody-was-given";

/// Seconds for which the live lock of a stage still lasts.
const LOCK_LEFT: i64 = 200;

const LETTERS: [(char, &str); 6] = [
    ('A', "coupon_assigned"),
    ('L', "coupon_locked"),
    ('R', "lock_renewed"),
    ('U', "coupon_unlocked"),
    ('X', "lock_expired"),
    ('S', "coupon_redeemed"),
];

/// The open book that wants a lock; one use is left.
const OPEN: &str = "
actor  action token   | unassigned       assigned         live              lapsed           swept            redeemed       void
admin  draw   other   | assigned+A       book_exhausted   book_exhausted    book_exhausted   book_exhausted   book_exhausted book_exhausted
admin  give   holder  | assigned+A       same             same              same             same             invalid_state  invalid_state
admin  give   other   | assigned+A       already_assigned already_assigned  already_assigned already_assigned invalid_state  invalid_state
holder lock   -       | not_found        locked+L         coupon_locked     locked+XL        locked+L         invalid_state  invalid_state
holder lock   good    | not_found        lock_not_owned   locked+R          lock_expired     lock_expired     invalid_state  invalid_state
holder lock   unknown | not_found        lock_not_owned   coupon_locked     lock_not_owned   lock_not_owned   invalid_state  invalid_state
holder unlock -       | not_found        same             coupon_locked     same             same             invalid_state  invalid_state
holder unlock good    | not_found        lock_not_owned   assigned+U        same             same             invalid_state  invalid_state
holder unlock unknown | not_found        lock_not_owned   lock_not_owned    lock_not_owned   lock_not_owned   invalid_state  invalid_state
holder redeem -       | not_found        lock_required    coupon_locked     lock_required    lock_required    invalid_state  invalid_state
holder redeem good    | not_found        lock_not_owned   redeemed+S        lock_expired     lock_expired     same           invalid_state
holder redeem unknown | not_found        lock_not_owned   lock_not_owned    lock_not_owned   lock_not_owned   invalid_state  invalid_state
admin  lock   -       | invalid_state    locked+L         coupon_locked     locked+XL        locked+L         invalid_state  invalid_state
admin  unlock -       | invalid_state    same             assigned+U        same             same             invalid_state  invalid_state
admin  unlock unknown | invalid_state    lock_not_owned   lock_not_owned    lock_not_owned   lock_not_owned   invalid_state  invalid_state
admin  redeem good    | invalid_state    lock_not_owned   redeemed+S        lock_expired     lock_expired     same           invalid_state
other  lock   -       | not_found        not_found        not_found         not_found        not_found        not_found      not_found
other  unlock good    | not_found        not_found        not_found         not_found        not_found        not_found      not_found
other  redeem good    | not_found        not_found        not_found         not_found        not_found        not_found      not_found
";

/// The open book that redeems without a lock; one use is left.
const WITHOUT_LOCK: &str = "
actor  action token   | unassigned       assigned         live              lapsed           swept            redeemed       void
holder redeem -       | not_found        redeemed+S       coupon_locked     redeemed+XS      redeemed+S       invalid_state  invalid_state
holder redeem good    | not_found        lock_not_owned   redeemed+S        lock_expired     lock_expired     same           invalid_state
holder redeem unknown | not_found        lock_not_owned   lock_not_owned    lock_not_owned   lock_not_owned   invalid_state  invalid_state
admin  redeem -       | invalid_state    redeemed+S       coupon_locked     redeemed+XS      redeemed+S       invalid_state  invalid_state
holder lock   -       | not_found        locked+L         coupon_locked     locked+XL        locked+L         invalid_state  invalid_state
";

/// The open book that redeems without a lock; two uses are left (the redeemed and void ones have none).
const TWO_USES: &str = "
actor  action token   | unassigned       assigned         live              lapsed           swept
holder redeem -       | not_found        assigned+S       coupon_locked     assigned+XS      assigned+S
holder redeem good    | not_found        lock_not_owned   assigned+S        lock_expired     lock_expired
";

/// The holder has redeemed as often as the book allows; no lock is wanted.
const LIMIT_REACHED: &str = "
actor  action token   | assigned                 live                     lapsed
holder redeem -       | redemption_limit_reached coupon_locked            redemption_limit_reached
holder redeem good    | lock_not_owned           redemption_limit_reached lock_expired
holder lock   -       | locked+L                 coupon_locked            locked+XL
";

/// What bars a transition, against actions on each state; the book wants a lock. `outlived` is the validity that began
/// with the assignment.
const BARRED: &str = "
state      actor  action token   | draft            paused           archived         unstarted        ended            expired          outlived         disabled
unassigned admin  draw   holder  | book_not_active  book_not_active  book_not_active  book_not_started book_ended       book_exhausted   -                user_disabled
unassigned admin  give   holder  | book_not_active  book_not_active  book_not_active  book_not_started book_ended       coupon_expired   -                user_disabled
assigned   admin  give   holder  | same             same             same             same             same             same             same             same
assigned   admin  give   other   | book_not_active  book_not_active  book_not_active  book_not_started book_ended       already_assigned already_assigned already_assigned
assigned   admin  lock   -       | book_not_active  book_not_active  book_not_active  book_not_started book_ended       coupon_expired   coupon_expired   user_disabled
swept      admin  lock   -       | book_not_active  book_not_active  book_not_active  book_not_started book_ended       coupon_expired   coupon_expired   user_disabled
lapsed     admin  lock   -       | book_not_active  book_not_active  book_not_active  book_not_started book_ended       coupon_expired   coupon_expired   user_disabled
live       admin  lock   -       | coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked
live       admin  lock   good    | book_not_active  book_not_active  book_not_active  book_not_started book_ended       coupon_expired   coupon_expired   user_disabled
live       admin  unlock good    | assigned+U       assigned+U       assigned+U       assigned+U       assigned+U       assigned+U       assigned+U       assigned+U
lapsed     admin  unlock good    | same             same             same             same             same             same             same             same
live       admin  redeem good    | book_not_active  book_not_active  book_not_active  book_not_started redeemed+S       redeemed+S       redeemed+S       user_disabled
lapsed     admin  redeem good    | lock_expired     lock_expired     lock_expired     lock_expired     lock_expired     lock_expired     lock_expired     lock_expired
swept      admin  redeem good    | lock_expired     lock_expired     lock_expired     lock_expired     lock_expired     lock_expired     lock_expired     lock_expired
redeemed   admin  redeem good    | same             same             same             same             same             same             same             same
redeemed   admin  lock   -       | invalid_state    invalid_state    invalid_state    invalid_state    invalid_state    invalid_state    invalid_state    invalid_state
";

/// The same where no lock is wanted.
const BARRED_WITHOUT_LOCK: &str = "
state      actor  action token   | draft            paused           archived         unstarted        ended            expired          outlived         disabled
assigned   admin  redeem -       | book_not_active  book_not_active  book_not_active  book_not_started book_ended       coupon_expired   coupon_expired   user_disabled
lapsed     admin  redeem -       | book_not_active  book_not_active  book_not_active  book_not_started book_ended       coupon_expired   coupon_expired   user_disabled
live       admin  redeem -       | coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked    coupon_locked
live       admin  redeem good    | book_not_active  book_not_active  book_not_active  book_not_started redeemed+S       redeemed+S       redeemed+S       user_disabled
";

#[tokio::test(flavor = "multi_thread")]
async fn every_state_answers_every_action_in_an_open_book() {
    let scene = Scene::start().await;
    scene.play_all(OPEN, LOCK_WANTED).await;
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_that_wants_no_lock_redeems_from_assigned() {
    let scene = Scene::start().await;
    scene.play_all(WITHOUT_LOCK, NO_LOCK_WANTED).await;
    scene
        .play_all(
            TWO_USES,
            Stage {
                uses: 2,
                ..NO_LOCK_WANTED
            },
        )
        .await;
    let limited = Stage {
        max_redemptions: Some(1),
        ..NO_LOCK_WANTED
    };
    scene.play_all(LIMIT_REACHED, limited).await;
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_book_an_expired_coupon_and_a_disabled_holder_each_have_their_own_refusal() {
    let scene = Scene::start().await;
    scene.play_all(BARRED, LOCK_WANTED).await;
    scene.play_all(BARRED_WITHOUT_LOCK, NO_LOCK_WANTED).await;
    scene.service.stop().await;
}
