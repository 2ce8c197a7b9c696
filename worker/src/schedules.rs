//! The clock of the sweeps and of the schedules: apalis-cron ticks in every process, one of them wins each tick.
//!
//! Invariant: a tick only enqueues, and the first process to insert the row of (schedule, tick) does; so each tick runs
//! once however many processes run. A missed tick does not matter: what it starts looks at the state of things.

use std::{str::FromStr, time::Duration};

use apalis::prelude::*;
use apalis_cron::{CronScheduler, Tick};
use chrono::{DateTime, Utc};
use coupon_core::{
    Error,
    db::{self, Db},
    job::{
        enqueue,
        payload::Payload,
        signals::{Signal, Signals},
    },
};
use tokio::{sync::watch, task::JoinHandle};

/// Name, cron expression (with seconds) and task of each sweep.
const SWEEPS: [(&str, &str, Payload); 4] = [
    // A lapsed lock is no lock at once; its event follows within one period.
    ("sweep-locks", "*/5 * * * * *", Payload::SweepLocks),
    // Statistics are two periods and a margin behind at most.
    ("roll-up", "3/10 * * * * *", Payload::RollUp),
    // A fire is at most this late when the service is well.
    ("fire-schedules", "*/2 * * * * *", Payload::FireSchedules),
    ("sweep-leftovers", "30 */10 * * * *", Payload::SweepLeftovers),
];

/// A tick that cannot be written by then is left to the next.
const TICK_PATIENCE: Duration = Duration::from_secs(4);

pub(crate) fn start(db: &Db, signals: &Signals, stopping: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
    SWEEPS
        .into_iter()
        .map(|(name, expression, payload)| {
            let schedule = cron::Schedule::from_str(expression).expect("the expressions of this file are valid");
            let (db, signals, mut stopping) = (db.clone(), signals.clone(), stopping.clone());
            let worker = WorkerBuilder::new(format!("clock-{name}")).backend(CronScheduler::new(schedule)).build(
                move |tick: Tick<Utc>| {
                    // In a task of its own: a handler that overruns its period would end the clock.
                    tokio::spawn(on_tick(db.clone(), signals.clone(), name, tick, payload.clone()));
                    std::future::ready(())
                },
            );
            let mut clock = tokio::spawn(worker.run());
            tokio::spawn(async move {
                tokio::select! {
                    ended = &mut clock => tracing::error!(schedule = name, ?ended, "the clock of a sweep has stopped"),
                    // Nothing is lost by dropping the clock: a tick is one transaction.
                    _ = stopping.wait_for(|stop| *stop) => clock.abort(),
                }
            })
        })
        .collect()
}

async fn on_tick(db: Db, signals: Signals, name: &'static str, tick: Tick<Utc>, payload: Payload) {
    let Some(at) = i64::try_from(tick.get_timestamp())
        .ok()
        .and_then(|at| DateTime::from_timestamp(at, 0))
    else {
        return;
    };
    match tokio::time::timeout(TICK_PATIENCE, take_tick(&db, name, at, &payload)).await {
        Ok(Ok(true)) => signals.ring(Signal::Due),
        Ok(Ok(false)) => {}
        Ok(Err(error)) => tracing::warn!(schedule = name, %error, "a tick was not taken"),
        Err(_) => tracing::warn!(schedule = name, "a tick was not taken in time"),
    }
}

/// Takes a tick if no other process has, and enqueues its task in the same transaction.
async fn take_tick(db: &Db, name: &str, tick: DateTime<Utc>, payload: &Payload) -> Result<bool, Error> {
    let mut tx = db.begin().await?;
    let won = coupon_core::schedule::take_tick(&mut tx, name, tick).await?;
    if won {
        enqueue::upkeep(&mut tx, payload).await?;
    }
    db::commit(tx).await?;
    Ok(won)
}
