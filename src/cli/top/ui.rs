//! What the keys do, and what is shown of the data. Without input and output.

use super::{
    Sort, View,
    feed::{Data, MOST_SESSIONS, Order, Update, Wants, shown},
    keys::Key,
    lists::{Entry, arrange, columns, entries},
    screen::{Line, Style},
    terminal::Size,
};
use crate::{
    admin::span,
    cli::{admin_state::Name, table::fit},
    plan::{MOST_WEIGHT, counted},
    upstream::pool::AdminState,
};

/// Lines above and below the list, without the one about a process before.
const AROUND: usize = 5;
const HELP: [&str; 17] = [
    "tab, 1 ... 5   backends, listeners, sessions, events, upstreams",
    "up down j k    select; page up, page down, home, end",
    "enter          sessions of the selected backend; escape: all again",
    "/              filter: all words must be in the name, state or reason",
    "s              sort: file, state, sessions, connects, bytes, errors",
    "u              only what is not well, or all",
    "",
    "d              drain the selected backend",
    "m              take it into maintenance",
    "r              ready: let it serve again",
    "w              its weight; without a number: that of the file",
    "               each asks first: y confirms",
    "",
    "ctrl-l         draw again    ctrl-z  suspend    q  quit",
    "in, out: bytes from clients and to them",
    "rates, as conn/s: of the time since the refresh before, a second",
    "",
];

/// What a key leads to outside.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Order(Order),
    Redraw,
    Suspend,
    Quit,
}

/// What the keys are for.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    List,
    Filter,
    /// The order is carried out after "y".
    Confirm(Order, String),
    Weight(Name, String),
    Help,
}

pub(super) struct Ui {
    view: View,
    sort: Sort,
    filter: String,
    is_only_unwell: bool,
    mode: Mode,
    /// Whose sessions are shown; `None`: all.
    backend: Option<Name>,
    data: Option<Box<Data>>,
    /// What is shown of them.
    entries: Vec<Entry>,
    /// How many there are without the filter.
    count: usize,
    /// An index into `entries`.
    selected: usize,
    /// The first that is shown.
    top: usize,
    /// Of the last order.
    message: String,
    /// Why there are no newer data.
    failure: Option<String>,
    /// Lines that the list has.
    height: usize,
}

impl Ui {
    pub(super) fn new(view: View, sort: Sort, filter: &str, is_only_unwell: bool) -> Self {
        Self {
            view,
            sort,
            filter: filter.to_owned(),
            is_only_unwell,
            mode: Mode::List,
            backend: None,
            data: None,
            entries: Vec::new(),
            count: 0,
            selected: 0,
            top: 0,
            message: String::new(),
            failure: None,
            height: 1,
        }
    }

    pub(super) fn wants(&self) -> Wants {
        Wants {
            view: self.view,
            backend: self.backend.clone(),
        }
    }

    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Data(data) => {
                self.data = Some(data);
                self.failure = None;
                self.arrange();
            }
            Update::Message(message) => self.message = message,
            Update::Failure(why) => self.failure = Some(why),
        }
    }

    /// The rows that are shown.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn view(&self) -> View {
        self.view
    }

    /// What was selected stays so wherever it is now.
    fn arrange(&mut self) {
        let Some(data) = &self.data else {
            return;
        };
        let key = self.entries.get(self.selected).map(|e| e.key.clone());
        let all = entries(data, self.view);
        self.count = all.len();
        self.entries = arrange(all, &self.filter, self.sort, self.is_only_unwell);
        let again = key.and_then(|key| self.entries.iter().position(|e| e.key == key));
        self.select(again.unwrap_or(self.selected));
    }

    fn select(&mut self, index: usize) {
        self.selected = index.min(self.entries.len().saturating_sub(1));
        self.top = self.top.min(self.selected);
        if self.selected >= self.top + self.height {
            self.top = self.selected + 1 - self.height;
        }
    }

    pub(super) fn fit(&mut self, size: Size) {
        let around = AROUND + usize::from(self.previous().is_some());
        self.height = size.lines.saturating_sub(around).max(1);
        self.select(self.selected);
    }

    pub(super) fn press(&mut self, key: Key) -> Effect {
        match key {
            Key::Interrupt => return Effect::Quit,
            Key::Suspend => return Effect::Suspend,
            Key::Redraw => return Effect::Redraw,
            _ => {}
        }
        match std::mem::replace(&mut self.mode, Mode::List) {
            Mode::List => self.press_in_list(key),
            Mode::Help => Effect::None,
            Mode::Filter => {
                match key {
                    Key::Char(c) => self.filter.push(c),
                    Key::Backspace => drop(self.filter.pop()),
                    Key::Escape => self.filter.clear(),
                    _ => {}
                }
                if !matches!(key, Key::Enter | Key::Escape) {
                    self.mode = Mode::Filter;
                }
                self.arrange();
                Effect::None
            }
            Mode::Confirm(order, _) if key == Key::Char('y') => {
                self.message = "asking the process ...".to_owned();
                Effect::Order(order)
            }
            Mode::Confirm(..) => {
                self.message = "nothing was changed".to_owned();
                Effect::None
            }
            Mode::Weight(name, digits) => self.press_in_weight(key, name, digits),
        }
    }

    fn press_in_list(&mut self, key: Key) -> Effect {
        let page = self.height.saturating_sub(1).max(1);
        self.message.clear();
        match key {
            Key::Char('q') => return Effect::Quit,
            Key::Char('?' | 'h') => self.mode = Mode::Help,
            Key::Tab => self.show(self.view.next(), None),
            Key::Char(n @ '1'..='5') => {
                let view = View::ALL[n as usize - '1' as usize];
                self.show(view, None);
            }
            Key::Escape if self.backend.is_some() => self.show(View::Sessions, None),
            Key::Escape => {
                self.filter.clear();
                self.arrange();
            }
            Key::Enter => {
                let selected = self.entries.get(self.selected);
                if let Some(name) = selected.and_then(|e| e.backend.clone()) {
                    self.show(View::Sessions, Some(name));
                }
            }
            Key::Up | Key::Char('k') => self.select(self.selected.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(self.selected + 1),
            Key::PageUp => self.select(self.selected.saturating_sub(page)),
            Key::PageDown => self.select(self.selected + page),
            Key::Home | Key::Char('g') => self.select(0),
            Key::End | Key::Char('G') => self.select(usize::MAX),
            Key::Char('/') => self.mode = Mode::Filter,
            Key::Char('s') => {
                self.sort = self.sort.next();
                self.arrange();
            }
            Key::Char('u') => {
                self.is_only_unwell = !self.is_only_unwell;
                self.arrange();
            }
            Key::Char('d') => self.ask(AdminState::Drain, "drain"),
            Key::Char('m') => self.ask(AdminState::Maint, "take into maintenance"),
            Key::Char('r') => self.ask(AdminState::Ready, "let serve again"),
            Key::Char('w') => {
                if let Some((name, _)) = self.selected_backend() {
                    self.mode = Mode::Weight(name, String::new());
                }
            }
            _ => {}
        }
        Effect::None
    }

    fn press_in_weight(&mut self, key: Key, name: Name, mut digits: String) -> Effect {
        match key {
            Key::Char(c) if c.is_ascii_digit() && digits.len() < 9 => digits.push(c),
            Key::Backspace => drop(digits.pop()),
            Key::Escape => {
                self.message = "nothing was changed".to_owned();
                return Effect::None;
            }
            Key::Enter => {
                let weight = digits.parse().ok().filter(|weight| *weight <= MOST_WEIGHT);
                let what = match weight {
                    Some(weight) => format!("give {name} the weight {weight}"),
                    None if digits.is_empty() => format!("give {name} the weight of the file"),
                    None => {
                        self.message = format!("a weight is a number up to {MOST_WEIGHT}");
                        return Effect::None;
                    }
                };
                self.mode = Mode::Confirm(Order::Weight(name, weight), what);
                return Effect::None;
            }
            _ => {}
        }
        self.mode = Mode::Weight(name, digits);
        Effect::None
    }

    fn show(&mut self, view: View, backend: Option<Name>) {
        self.view = view;
        self.backend = backend;
        (self.selected, self.top) = (0, 0);
        self.entries.clear();
        self.message.clear();
        // What was asked for another view has no sessions and no events.
        self.arrange();
    }

    /// An order is for a row of the list of backends.
    fn selected_backend(&mut self) -> Option<(Name, u64)> {
        let selected = self.entries.get(self.selected);
        let found = selected
            .filter(|_| self.view == View::Backends)
            .and_then(|entry| Some((entry.backend.clone()?, entry.sessions)));
        if found.is_none() {
            self.message = "select one in the list of backends, with 1".to_owned();
        }
        found
    }

    fn ask(&mut self, state: AdminState, verb: &str) {
        if let Some((name, sessions)) = self.selected_backend() {
            let what = format!("{verb}: {name}, {}", counted(sessions, "session"));
            self.mode = Mode::Confirm(Order::Admin(name, state), what);
        }
    }

    pub(super) fn lines(&self, size: Size) -> Vec<Line> {
        let Size { columns, lines } = size;
        let mut out = vec![self.header()];
        out.extend(self.previous());
        out.push(self.settings(columns));
        if self.mode == Mode::Help {
            out.extend(HELP.map(|line| Line::of(Style::Plain, line)));
        } else {
            out.push(self.titles(columns));
            let shown = self.entries.iter().enumerate().skip(self.top);
            out.extend(
                shown
                    .take(self.height)
                    .map(|(n, entry)| self.row(n, entry, columns)),
            );
        }
        let below = 2.min(lines.saturating_sub(1));
        out.resize(lines - below, Line::default());
        let selected = self.entries.get(self.selected);
        let detail = selected.map_or("", |entry| &*entry.detail);
        let last = [Line::of(Style::Dim, detail), self.last_line()];
        out.extend(last.into_iter().skip(2 - below));
        out.into_iter().map(|line| line.cut(columns)).collect()
    }

    fn header(&self) -> Line {
        let Some(data) = &self.data else {
            return Line::of(Style::Bold, "tembuku: asking the process ...");
        };
        let p = &data.status.process;
        #[expect(clippy::cast_precision_loss, reason = "days of seconds")]
        let up = span(p.uptime_seconds as f64);
        let mut text = format!("tembuku {} {}, up {up}", shown(&p.version), shown(&p.state));
        text += &format!(", {}/{} connections", p.connections, p.max_connections);
        if p.max_flows > 0 {
            text += &format!(", {}/{} flows", p.flows, p.max_flows);
        }
        Line::of(Style::Bold, text)
    }

    /// What there is to know about the process that this one has replaced.
    fn previous(&self) -> Option<Line> {
        let previous = self.data.as_ref()?.status.process.previous.as_ref()?;
        let text = format!(
            "before it: pid {}, {}, {}, draining since {}",
            previous.pid,
            counted(previous.connections, "connection"),
            counted(previous.flows, "flow"),
            shown(&previous.since)
        );
        Some(Line::of(Style::Warning, text))
    }

    /// The views, of which the others are numbers where their names do not fit, and what
    /// is shown of this one.
    fn settings(&self, columns: usize) -> Line {
        let text = self.selection();
        let views = View::ALL.map(|view| format!("{} {}", view as usize + 1, view.word()));
        let length = views.iter().map(|view| view.len() + 1).sum::<usize>();
        let has_room = length + text.chars().count() <= columns;
        let mut parts = Vec::new();
        for (view, name) in View::ALL.into_iter().zip(views) {
            let (style, shown) = match (view == self.view, has_room) {
                (true, _) => (Style::Selected, &*name),
                (false, true) => (Style::Dim, &*name),
                (false, false) => (Style::Dim, &name[..1]),
            };
            parts.push((style, shown.to_owned()));
            parts.push((Style::Plain, " ".to_owned()));
        }
        parts.push((Style::Plain, text));
        Line(parts)
    }

    fn selection(&self) -> String {
        let mut text = format!(" {}/{}", self.entries.len(), self.count);
        if self.view == View::Sessions && self.data.as_ref().is_some_and(|data| data.is_more) {
            text += &format!(" of more than {MOST_SESSIONS}");
        }
        if self.sort != Sort::File {
            text += &format!(", by {}", self.sort.word());
        }
        if self.is_only_unwell {
            text += ", not well";
        }
        if let Some(name) = &self.backend {
            text += &format!(", of {name}");
        }
        if !self.filter.is_empty() && self.mode != Mode::Filter {
            text += &format!(", with {:?}", shown(&self.filter));
        }
        text
    }

    fn titles(&self, columns: usize) -> Line {
        let titles = widths(self.view, columns);
        let titles = titles.map(|(column, width)| fit(column.title, width, column.is_right));
        Line::of(Style::Bold, titles.collect::<Vec<_>>().join(" "))
    }

    fn row(&self, n: usize, entry: &Entry, columns: usize) -> Line {
        let cells = widths(self.view, columns).zip(&entry.cells);
        let cells = cells.map(|((column, width), cell)| fit(cell, width, column.is_right));
        let text = cells.collect::<Vec<_>>().join(" ");
        match n == self.selected {
            true => Line::of(Style::Selected, fit(&text, columns, false)),
            false => Line::of(entry.style, text),
        }
    }

    fn last_line(&self) -> Line {
        let (style, text) = match (&self.mode, &self.failure) {
            (Mode::Filter, _) => (Style::Bold, format!("/{}_", shown(&self.filter))),
            (Mode::Confirm(_, what), _) => (Style::Warning, format!("{what}? (y/n)")),
            (Mode::Weight(name, digits), _) => {
                let text = format!("weight of {name}: {digits}_ (empty: as in the file)");
                (Style::Bold, text)
            }
            (Mode::Help, _) => (Style::Dim, "any key goes back".to_owned()),
            (Mode::List, Some(why)) => (Style::Bad, why.clone()),
            (Mode::List, None) if !self.message.is_empty() => (Style::Bold, self.message.clone()),
            (Mode::List, None) => {
                let keys = "q quit  ? help  / filter  s sort  u unwell  \
                            d drain  m maint  r ready  w weight";
                (Style::Dim, keys.to_owned())
            }
        };
        Line::of(style, text.trim_end())
    }
}

/// The first column takes what the others leave.
fn widths(
    view: View,
    total: usize,
) -> impl Iterator<Item = (&'static super::lists::Column, usize)> {
    let columns = columns(view);
    let others: usize = columns.iter().map(|column| column.width + 1).sum();
    let first = total.saturating_sub(others - 1).max(8);
    columns.iter().enumerate().map(move |(n, column)| match n {
        0 => (column, first),
        _ => (column, column.width),
    })
}
