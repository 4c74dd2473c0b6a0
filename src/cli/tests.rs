//! What documents, examples and packages name is there: keys, commands, flags, metrics, words and
//! messages; and what is there is documented.

mod commands;
mod configurations;
mod documents;
mod links;
mod messages;
mod pages;
mod words;

#[test]
fn maint_offers_no_node_in_its_help() {
    let mut command = <super::Cli as clap::CommandFactory>::command();
    let mut offers = |name: &str| {
        let command = command.find_subcommand_mut(name).expect("a command");
        command.render_long_help().to_string().contains("--node")
    };
    assert_eq!(
        ["drain", "ready", "maint"].map(&mut offers),
        [true, true, false]
    );
}
