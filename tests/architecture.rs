//! Holds the map of ARCHITECTURE.md: which folder may use which, that files do not import each
//! other in circles, and where `unsafe` may stand; and rules of style that the compiler does not
//! check.

use proc_macro2::{TokenStream, TokenTree};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};
use syn::{
    Expr, ExprUnsafe, Item, ItemUse, UseTree, Visibility,
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// From the outside in. A folder may use those that stand below it, never one above or beside it.
const ORDER: &[&[&str]] = &[
    &["cli"],
    &["admin"],
    &["control"],
    &["discover"],
    &["proxy"],
    &["session"],
    &["probe"],
    &["upstream"],
    &["runtime"],
    &["telemetry"],
    &["config"],
    &["handover", "plan", "proxy_protocol"],
    &["sys"],
];

/// Modules that decide and do not act: no event loop, no sockets, no clock of their own.
const PURE: &[&str] = &[
    "discover::format",
    "discover::merge",
    "handover::fields",
    "handover::message",
    "handover::record",
    "plan",
    "proxy_protocol",
    "runtime::timer_wheel",
    "telemetry::throttle",
    "upstream::balance",
    "upstream::explain",
    "upstream::health",
];

/// Of a function.
const MOST_LINES: usize = 100;

/// Parts of names that have stood for several things here, or for persons: the glossary in
/// CONTRIBUTING.md has the terms to use. `nobody` is not among them, since it is a user.
const REJECTED: &[&str] = &[
    "anybody",
    "bell",
    "blame",
    "elsewhere",
    "everybody",
    "facts",
    "gear",
    "heard",
    "introduction",
    "news",
    "recall",
    "said",
    "somebody",
    "tally",
    "telling",
    "told",
    "who",
    "whoever",
    "wish",
];

/// In comments and documents, where they stand for a socket, a process or a session.
const PERSONS: &[&str] = &["anybody", "everybody", "nobody", "somebody", "whoever"];

/// What a pure module must not name.
const ACTS: &[&str] = &[
    "tokio",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "TcpStream",
    "rand",
    "socket2",
];

/// A path as it is written in the code, from a module with this path.
type Segments = Vec<String>;

/// What a file names, without its tests.
#[derive(Default)]
struct Names {
    paths: Vec<Segments>,
    unsafe_blocks: usize,
    /// Functions with their lines.
    functions: Vec<(String, usize)>,
    /// Lines with an error type that is text.
    text_errors: Vec<usize>,
    /// Functions, types and constants that are `pub`.
    public: Vec<String>,
}

fn public_name((visibility, name): (&Visibility, &syn::Ident)) -> Option<String> {
    matches!(visibility, Visibility::Public(_)).then(|| name.to_string())
}

fn collect_use(tree: &UseTree, path: &mut Segments, names: &mut Names) {
    match tree {
        UseTree::Path(step) => {
            path.push(step.ident.to_string());
            collect_use(&step.tree, path, names);
            path.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                collect_use(tree, path, names);
            }
        }
        UseTree::Name(name) if name.ident == "self" => names.paths.push(path.clone()),
        UseTree::Name(syn::UseName { ident }) | UseTree::Rename(syn::UseRename { ident, .. }) => {
            let mut whole = path.clone();
            whole.push(ident.to_string());
            names.paths.push(whole);
        }
        UseTree::Glob(_) => names.paths.push(path.clone()),
    }
}

impl<'a> Visit<'a> for Names {
    fn visit_item(&mut self, item: &'a Item) {
        if !is_test(item) {
            let public = match item {
                Item::Const(item) => Some((&item.vis, &item.ident)),
                Item::Enum(item) => Some((&item.vis, &item.ident)),
                Item::Fn(item) => Some((&item.vis, &item.sig.ident)),
                Item::Struct(item) => Some((&item.vis, &item.ident)),
                Item::Type(item) => Some((&item.vis, &item.ident)),
                _ => None,
            };
            self.public.extend(public.and_then(public_name));
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        collect_use(&item.tree, &mut Vec::new(), self);
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.add_function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.add_function(&item.sig, &item.block);
        self.public
            .extend(public_name((&item.vis, &item.sig.ident)));
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_path_segment(&mut self, segment: &'a syn::PathSegment) {
        if segment.ident == "Result"
            && let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments
            && let Some(syn::GenericArgument::Type(syn::Type::Path(error))) = arguments.args.get(1)
            && error.path.is_ident("String")
        {
            self.text_errors.push(segment.ident.span().start().line);
        }
        visit::visit_path_segment(self, segment);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments = path.segments.iter().map(|s| s.ident.to_string());
        self.paths.push(segments.collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        // Arguments of a macro are tokens: as expressions where they are some.
        let parser = syn::punctuated::Punctuated::<Expr, syn::Token![,]>::parse_terminated;
        if let Ok(arguments) = item.parse_body_with(parser) {
            for argument in &arguments {
                visit::visit_expr(self, argument);
            }
        }
    }

    fn visit_expr_unsafe(&mut self, block: &'a ExprUnsafe) {
        self.unsafe_blocks += 1;
        visit::visit_expr_unsafe(self, block);
    }
}

impl Names {
    fn add_function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (first, last) = (signature.span().start(), block.span().end());
        let lines = last.line - first.line + 1;
        self.functions.push((signature.ident.to_string(), lines));
    }
}

fn is_test(item: &Item) -> bool {
    let attributes = match item {
        Item::Mod(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Const(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        is_cfg
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|p| p.is_ident("test"))
    })
}

/// Every module of the crate that is a file, by its path from the root.
struct Crate {
    files: BTreeMap<String, PathBuf>,
}

impl Crate {
    fn read() -> Self {
        let mut files = files_below("src");
        // Files of tests belong to no layer.
        files.retain(|module, _| !module.split("::").any(|part| part == "tests"));
        Self { files }
    }

    fn names(&self, module: &str) -> Names {
        let text = fs::read_to_string(&self.files[module]).expect("readable");
        names(&text)
    }

    /// The file that a path leads to, when written in this module.
    fn file_of(&self, module: &str, path: &[String]) -> Option<String> {
        let mut at: Vec<&str> = match module {
            module if is_root(module) => Vec::new(),
            module => module.split("::").collect(),
        };
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            _ => {}
        }
        while rest.first().is_some_and(|part| part == "super") {
            at.pop();
            rest = &rest[1..];
        }
        at.extend(rest.iter().map(String::as_str));
        while !at.is_empty() {
            let module = at.join("::");
            if self.files.contains_key(&module) {
                return Some(module);
            }
            at.pop();
        }
        None
    }

    /// Which files each file uses; not those that it is inside of, or that are inside of it.
    fn imports(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for module in self.files.keys() {
            let names = self.names(module);
            let used = names.paths.iter().filter_map(|p| self.file_of(module, p));
            let others = used.filter(|used| {
                let (a, b) = (format!("{module}::"), format!("{used}::"));
                !a.starts_with(&b) && !b.starts_with(&a)
            });
            imports.insert(module.clone(), others.collect());
        }
        imports
    }
}

/// The Rust files of a folder of the repository, by their path as a module.
fn files_below(folder: &str) -> BTreeMap<String, PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the source is readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(&root).expect("below the folder");
                let module = inside.with_extension("").display().to_string();
                files.insert(module.replace('/', "::"), path);
            }
        }
    }
    files
}

fn names(text: &str) -> Names {
    let mut names = Names::default();
    names.visit_file(&syn::parse_file(text).expect("Rust"));
    names
}

/// The file that names the modules of a crate.
fn is_root(module: &str) -> bool {
    matches!(
        module,
        "lib" | "main" | "base_lib" | "config_lib" | "engine_lib"
    )
}

fn folder(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

fn level(module: &str) -> usize {
    let folder = folder(module);
    let level = ORDER.iter().position(|folders| folders.contains(&folder));
    level.unwrap_or_else(|| {
        panic!("{folder} belongs to no layer: add it to ORDER and ARCHITECTURE.md")
    })
}

#[test]
fn imports_go_downward_only() {
    let mut upward = Vec::new();
    for (module, used) in Crate::read().imports() {
        if is_root(&module) {
            continue;
        }
        for used in used {
            if folder(&used) != folder(&module) && level(&used) <= level(&module) {
                upward.push(format!("{module} uses {used}"));
            }
        }
    }
    assert!(upward.is_empty(), "{}", upward.join("\n"));
}

/// All that can be reached from there.
fn reach<'a>(imports: &'a BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = imports[from].iter().map(String::as_str).collect();
    while let Some(module) = open.pop() {
        if reached.insert(module) {
            open.extend(imports[module].iter().map(String::as_str));
        }
    }
    reached
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let imports = Crate::read().imports();
    let mut circles = BTreeSet::new();
    for module in imports.keys() {
        let reached = reach(&imports, module);
        if reached.contains(module.as_str()) {
            let is_back = |other: &&&str| reach(&imports, other).contains(module.as_str());
            let circle: Vec<&str> = reached.iter().filter(is_back).copied().collect();
            circles.insert(circle);
        }
    }
    assert!(circles.is_empty(), "{circles:?}");
}

#[test]
fn pure_modules_do_not_act() {
    let all = Crate::read();
    for module in all.files.keys() {
        let is_pure = |pure: &&str| module == *pure || module.starts_with(&format!("{pure}::"));
        if !PURE.iter().any(is_pure) {
            continue;
        }
        for path in all.names(module).paths {
            let path = format!("::{}::", path.join("::"));
            for name in ACTS {
                let named = path.contains(&format!("::{name}::"));
                assert!(!named, "{module}: {name} in a pure module");
            }
        }
    }
}

#[test]
fn unsafe_stands_in_sys_alone() {
    let all = Crate::read();
    for module in all.files.keys() {
        let blocks = all.names(module).unsafe_blocks;
        let allowed = folder(module) == "sys" || blocks == 0;
        assert!(allowed, "{module}: unsafe outside sys");
    }
}

/// The compiler reports no dead code that other crates could use.
#[test]
fn what_crates_offer_each_other_is_used() {
    let all = Crate::read();
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        for path in files_below(folder).into_values() {
            let text = fs::read_to_string(path).expect("readable");
            count_idents(text.parse().expect("Rust"), &mut used);
        }
    }
    let mut unused = Vec::new();
    for module in all.files.keys().filter(|module| folder(module) != "cli") {
        let offered = all.names(module).public.into_iter();
        unused.extend(
            offered
                .filter(|name| used[name] < 2)
                .map(|name| format!("{module}: {name}")),
        );
    }
    assert!(unused.is_empty(), "nothing uses:\n{}", unused.join("\n"));
}

fn count_idents(tokens: TokenStream, counts: &mut BTreeMap<String, usize>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => *counts.entry(ident.to_string()).or_default() += 1,
            TokenTree::Group(group) => count_idents(group.stream(), counts),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

#[test]
fn functions_are_short() {
    let all = Crate::read();
    let mut long = Vec::new();
    for module in all.files.keys() {
        for (function, lines) in all.names(module).functions {
            if lines > MOST_LINES {
                long.push(format!("{module}: {function} has {lines} lines"));
            }
        }
    }
    assert!(long.is_empty(), "too long:\n{}", long.join("\n"));
}

#[test]
fn errors_are_types_and_not_text() {
    let all = Crate::read();
    let mut text = Vec::new();
    // What an import says goes to a reader, as all of `cli`.
    let is_edge = |module: &String| folder(module) == "cli" || module.starts_with("config::import");
    for module in all.files.keys().filter(|module| !is_edge(module)) {
        for line in all.names(module).text_errors {
            text.push(format!("{module}:{line}"));
        }
    }
    assert!(text.is_empty(), "Result<_, String>:\n{}", text.join("\n"));
}

/// rustfmt leaves comments alone.
#[test]
fn comments_end_at_100_columns() {
    let mut long = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        for (module, path) in files_below(folder) {
            let text = fs::read_to_string(path).expect("readable");
            for (number, line) in text.lines().enumerate() {
                if line.trim_start().starts_with("//") && line.chars().count() > 100 {
                    long.push(format!("{folder}/{module}:{}", number + 1));
                }
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// `told_of` and `ToldOf` as `told` and `of`.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            parts.push(String::new());
        }
        if c != '_' {
            parts.last_mut().expect("one").extend(c.to_lowercase());
        }
    }
    parts
}

/// All names that a file uses.
#[derive(Default)]
struct Identifiers(BTreeSet<String>);

impl<'a> Visit<'a> for Identifiers {
    fn visit_ident(&mut self, ident: &'a syn::Ident) {
        self.0.insert(ident.to_string());
    }
}

#[test]
fn names_have_no_rejected_word() {
    let mut found = BTreeSet::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        for (module, path) in files_below(folder) {
            let text = fs::read_to_string(path).expect("readable");
            let mut names = Identifiers::default();
            names.visit_file(&syn::parse_file(&text).expect("Rust"));
            for name in names.0 {
                let words = parts(&name);
                if words.iter().any(|word| REJECTED.contains(&word.as_str())) {
                    found.insert(format!("{folder}/{module}: {name}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", Vec::from_iter(found).join("\n"));
}

/// Text in quotes and backticks is that of a program, which may run as the user `nobody`.
#[test]
fn comments_and_documents_name_things_and_not_persons() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        texts.extend(files_below(folder).into_values());
    }
    for folder in [root.to_path_buf(), root.join("docs"), root.join("conf")] {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let is_text = |e: &std::ffi::OsStr| e == "md" || e == "toml";
            if path.extension().is_some_and(is_text) {
                texts.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for path in texts {
        let is_code = path.extension().is_some_and(|e| e == "rs");
        let text = fs::read_to_string(&path).expect("readable");
        for (number, line) in text.lines().enumerate() {
            let line = match line.split_once("//") {
                Some((_, comment)) if is_code => comment,
                _ if is_code => continue,
                _ => line,
            };
            let plain: String = line.split(['`', '"']).step_by(2).collect();
            let mut words = plain.split(|c: char| !c.is_alphanumeric());
            if words.any(|word| PERSONS.contains(&word.to_lowercase().as_str())) {
                found.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn this_test_sees_what_it_looks_for() {
    let names = names(
        "use crate::{\n    plan::{self, Place},\n    sys as s,\n};\nuse super::super::x::*;\n\
         fn f() { crate::health::go(vec![crate::y::Z]); }\n#[cfg(test)]\n\
         mod tests { use crate::no; }",
    );
    let paths: Vec<String> = names.paths.iter().map(|p| p.join("::")).collect();
    let expected = [
        "crate::plan",
        "crate::plan::Place",
        "crate::sys",
        "super::super::x",
        "crate::health::go",
        "crate::y::Z",
    ];
    assert_eq!(paths, expected);
}
