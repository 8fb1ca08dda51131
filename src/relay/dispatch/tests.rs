//! The dispatcher and the reading plan against a simulated world.

mod broker;
mod checks;
mod copies;
mod happen;
mod histories;
mod order;
mod pages;
mod pauses;
mod pressure;
mod recount;
mod refusals;
mod scenario;
mod seeded_bugs;
mod steps;
mod table;
mod twin;
mod world;
mod writers;
