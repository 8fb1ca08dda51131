//! What an attacker, a mistake or the passing of time must not do: to the connections, and to the endpoints.

mod connections;
mod endpoints;
mod grants;
mod identities;
mod leaks;
mod rights;
