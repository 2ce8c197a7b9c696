//! The whole service, proved together.

mod life;
mod queue;
mod truth;
