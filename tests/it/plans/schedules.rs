//! Schedules and what became of their fires.

use coupon_core::{retention, schedule::fire};

use super::{Hot, statement};

pub(super) fn hot() -> Vec<Hot> {
    vec![
        // Those that are due are few: whether they are sorted or read in order is all one.
        statement(
            "the next fire",
            "",
            fire::CLAIM,
            String::new(),
            &["schedules_due", "schedule_fires_pkey"],
        ),
        statement(
            "fires that wait",
            "float8",
            fire::NOTICE,
            "60".into(),
            &["schedules_due"],
        ),
        Hot {
            blocks: 9_000, // two blocks for the latest fire of each of 2,000 schedules, and two for older ones
            ..statement(
                "retention: fires",
                "int, bigint",
                retention::DELETE_FIRES,
                "30, 5000".into(),
                &["schedule_fires_pkey"],
            )
        },
    ]
}
