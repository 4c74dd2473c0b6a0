//! What documents, examples and packages name is there: keys, commands, flags, metrics, words and
//! messages; and what is there is documented.

mod commands;
mod configurations;
mod documents;
mod links;
mod messages;
mod pages;
mod words;
