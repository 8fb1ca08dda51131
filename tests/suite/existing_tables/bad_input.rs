//! What will not do: `check` and `run` say what, by name, and how to mend it.
