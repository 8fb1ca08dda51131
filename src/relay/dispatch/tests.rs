//! The dispatcher and the reading plan against a simulated world.

mod behaviour;
mod broker;
mod checks;
mod happen;
mod histories;
mod pages;
mod pauses;
mod pressure;
mod recount;
mod scenario;
mod seeded_bugs;
mod table;
mod twin;
mod world;
mod writers;
