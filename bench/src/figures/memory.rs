//! P8: what the service holds in memory, idle and while it takes in or makes many codes.
//!
//! The figure is the peak of the resident memory of the service's process, which the kernel keeps (Linux). Each peak is
//! that of a service that was started for it.

use std::time::Duration;

use super::{generate, import};
use crate::{
    Effort,
    report::{Line, Report},
    stand::Stand,
};

/// How long a service that has just started may settle.
const SETTLING: Duration = Duration::from_secs(3);

/// What memory may grow by from the small import to the large one and still be called flat, in MiB: noise of allocators.
const FLAT: f64 = 16.0;

/// P8: idle; imports of 1 and 10 million codes over idle; 10 million codes made over idle.
pub(crate) async fn measure(stand: &mut Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let [small, large] = if effort.quick {
        [100_000, 1_000_000]
    } else {
        [1_000_000, 10_000_000]
    };
    let mut line = |what: String, measured: f64, idle: f64, must: &'static str, met: bool| {
        report.add(Line {
            figure: "P8",
            what,
            measured: format!("{measured:.1} MiB"),
            limit: format!("{idle:.1} MiB idle"),
            result: format!("{:+.1} MiB", measured - idle),
            must,
            met,
        });
    };

    let idle = restart(stand).await?;
    let few = {
        import::import(stand, small).await?;
        stand.memory()?.peak
    };
    line(
        "resident memory of the service, idle".to_owned(),
        idle,
        0.0,
        "< 80 MiB",
        idle < 80.0,
    );
    let over = few - idle;
    line(
        format!("its peak during an import of {small} codes"),
        few,
        idle,
        "≤ 64 MiB",
        over <= 64.0,
    );
    stand.forget_coupons().await?;

    let idle = restart(stand).await?;
    import::import(stand, large).await?;
    let many = stand.memory()?.peak;
    let flat = many - idle <= over + FLAT;
    line(
        format!("its peak during an import of {large} codes"),
        many,
        idle,
        "≤ 64 MiB, flat",
        many - idle <= 64.0 && flat,
    );
    stand.forget_coupons().await?;

    let idle = restart(stand).await?;
    generate::generate(stand, large).await?;
    let made = stand.memory()?.peak;
    line(
        format!("its peak while it makes {large} codes"),
        made,
        idle,
        "≤ 64 MiB",
        made - idle <= 64.0,
    );
    stand.forget_coupons().await
}

/// A service that has just started and has nothing to do: its resident memory in MiB.
async fn restart(stand: &mut Stand) -> anyhow::Result<f64> {
    stand.stop_service().await?;
    stand.start_service().await?;
    tokio::time::sleep(SETTLING).await;
    stand.book(serde_json::json!({})).await?;
    Ok(stand.memory()?.resident)
}
