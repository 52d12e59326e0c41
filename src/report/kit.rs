//! What every page is made of: the frame, tables, figures at a glance.
//!
//! Texts of a model are hostile. They reach a page in one of two ways: through [`maud`], which
//! escapes what HTML obeys, inside a [`Name`], which also shows what would reorder or hide text;
//! or through [`island`], as JSON in which no character is left that could end the element, from
//! where scripts put them into text nodes only. The page forbids itself any connection.

use maud::{DOCTYPE, Markup, PreEscaped, Render, html};
use paring_ir::escape;
use serde::Serialize;

const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");

/// A text of a model: escaped, with control characters shown, and its middle left out where it is
/// very long.
pub(super) struct Name<'a>(pub(super) &'a str);

impl Render for Name<'_> {
    fn render_to(&self, out: &mut String) {
        escape(self.0).as_str().render_to(out);
    }
}

/// A name in the type of code.
pub(super) fn name(text: &str) -> Markup {
    html! { span.name { (Name(text)) } }
}

/// A part of a page.
pub(super) struct Section {
    pub(super) id: &'static str,
    /// What the list of parts at the top calls it.
    pub(super) short: &'static str,
    pub(super) title: &'static str,
    pub(super) body: Markup,
}

/// A page.
pub(super) struct Page<'a> {
    /// What made it: `inspect`, `optimize`, `diff`.
    pub(super) kind: &'static str,
    /// The title in the browser.
    pub(super) title: &'a str,
    /// The heading and what stands below it.
    pub(super) head: Markup,
    pub(super) sections: Vec<Section>,
    /// Further scripts, which run after that of the kit.
    pub(super) scripts: &'a [&'static str],
}

impl Page<'_> {
    /// The whole file.
    pub(super) fn render(&self) -> String {
        let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      base-uri 'none'; form-action 'none'";
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="generator" content={ "paring " (env!("CARGO_PKG_VERSION")) };
                    title { (Name(self.title)) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header.top {
                        div.brand {
                            b { "paring" } span { (self.kind) }
                            button #theme type="button" hidden { "Light / dark" }
                        }
                        (self.head)
                    }
                    nav.toc aria-label="On this page" {
                        div {
                            @for s in &self.sections { a href={ "#" (s.id) } { (s.short) } }
                        }
                    }
                    main {
                        @for s in &self.sections {
                            section #(s.id) { h2 { (s.title) } (s.body) }
                        }
                    }
                    footer {
                        "Made by paring " (env!("CARGO_PKG_VERSION"))
                        ". This page is one file and loads nothing."
                    }
                    script { (PreEscaped(SCRIPT)) }
                    @for script in self.scripts { script { (PreEscaped(script)) } }
                }
            }
        }
        .into_string()
    }
}

/// Data for scripts: JSON in an element of its own.
pub(super) fn island(id: &'static str, data: &impl Serialize) -> Markup {
    // Maps with string keys and plain values always serialize.
    let json = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        // Outside of strings JSON has none of these.
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                safe.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => safe.push(c),
        }
    }
    html! { script #(id) type="application/json" { (PreEscaped(safe)) } }
}

/// A figure at a glance.
pub(super) fn tile(label: &str, value: &str, under: &str) -> Markup {
    html! {
        div.tile { dt { (label) } dd { (value) @if !under.is_empty() { small { (Name(under)) } } } }
    }
}

/// A column of a table.
pub(super) struct Column {
    title: &'static str,
    help: &'static str,
    numeric: bool,
    wide: bool,
}

impl Column {
    /// A column of texts.
    pub(super) const fn text(title: &'static str) -> Column {
        Column {
            title,
            help: "",
            numeric: false,
            wide: false,
        }
    }

    /// A column of numbers.
    pub(super) const fn number(title: &'static str) -> Column {
        Column {
            numeric: true,
            ..Column::text(title)
        }
    }

    /// What the title means, shown when the mouse rests on it.
    pub(super) const fn help(self, help: &'static str) -> Column {
        Column { help, ..self }
    }

    /// Left out on narrow screens.
    pub(super) const fn wide(self) -> Column {
        Column { wide: true, ..self }
    }

    fn class(&self) -> String {
        let classes = [(self.numeric, "n"), (self.wide, "wide")];
        let set = classes.into_iter().filter(|(on, _)| *on).map(|(_, c)| c);
        set.collect::<Vec<_>>().join(" ")
    }
}

/// A cell: what it shows, and what it is sorted by where that is a number.
pub(super) struct Cell {
    body: Markup,
    value: Option<f64>,
    numeric: bool,
}

impl Cell {
    /// A cell that sorts by its text.
    pub(super) fn text(body: Markup) -> Cell {
        Cell {
            body,
            value: None,
            numeric: false,
        }
    }

    /// A number as text, with its value; `None` shows a dash and sorts last.
    pub(super) fn number(value: Option<f64>, show: impl Fn(f64) -> String) -> Cell {
        Cell {
            body: html! {
                @match value { Some(v) => (show(v)), None => span.muted { "–" } }
            },
            value,
            numeric: true,
        }
    }

    /// Anything that sorts by a number.
    pub(super) fn by(value: Option<f64>, body: Markup) -> Cell {
        Cell {
            body,
            value,
            numeric: true,
        }
    }

    /// A share from 0 to 1 with a bar.
    pub(super) fn share(value: Option<f64>) -> Cell {
        Cell::by(value, html! { @if let Some(v) = value { (share_bar(v)) } })
    }
}

/// A share from 0 to 1 as a percentage with a bar.
pub(super) fn share_bar(share: f64) -> Markup {
    let width = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    html! {
        span.barred {
            span.n { (percent(share)) }
            span.bar style={ "--v:" (format!("{width:.4}")) } {}
        }
    }
}

/// A share from 0 to 1 for people: `12.5 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A row, and what opens below it.
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
    pub(super) detail: Option<Markup>,
    /// Shown only with all rows.
    pub(super) quiet: bool,
}

impl Row {
    /// A row that does not open.
    pub(super) fn new(cells: Vec<Cell>) -> Row {
        Row {
            cells,
            detail: None,
            quiet: false,
        }
    }
}

/// A table whose columns sort. Of more than `shown` rows the rest appears on request; with
/// `search` a field finds rows.
pub(super) struct Table<'a> {
    pub(super) id: &'static str,
    pub(super) columns: &'a [Column],
    pub(super) rows: Vec<Row>,
    pub(super) shown: usize,
    pub(super) search: Option<&'static str>,
}

impl Render for Table<'_> {
    fn render(&self) -> Markup {
        let hidden = |(i, row): &(usize, &Row)| *i >= self.shown || row.quiet;
        let more = self.rows.iter().enumerate().filter(hidden).count();
        html! {
            @if let Some(what) = self.search {
                div.tools data-for=(self.id) {
                    input type="search" placeholder=(what) aria-label=(what);
                    span.found.muted role="status" {}
                }
            }
            div.scroll {
                table.data #(self.id) {
                    thead { tr { @for c in self.columns {
                        th scope="col" class=(c.class()) title=[(!c.help.is_empty()).then_some(c.help)] {
                            @if c.title.is_empty() { "" } @else { button type="button" { (c.title) } }
                        }
                    } } }
                    @for (i, row) in self.rows.iter().enumerate() { (self.row(i, row)) }
                }
            }
            @if more > 0 {
                p { button.plain.all type="button" data-for=(self.id) { "Show all " (self.rows.len()) } }
            }
        }
    }
}

impl Table<'_> {
    fn row(&self, index: usize, row: &Row) -> Markup {
        let opens = row.detail.is_some();
        let class = match (index >= self.shown || row.quiet, opens) {
            (true, true) => "more opens",
            (true, false) => "more",
            (false, true) => "opens",
            (false, false) => "",
        };
        html! {
            tbody class=[(!class.is_empty()).then_some(class)] {
                tr { @for (i, (cell, column)) in row.cells.iter().zip(self.columns).enumerate() {
                    td class=(column.class()) data-v=[cell.numeric.then(|| sort_key(cell.value))] {
                        @if opens && i == 0 {
                            button.opener type="button" aria-expanded="false" { (cell.body) }
                        } @else { (cell.body) }
                    }
                } }
                @if let Some(detail) = &row.detail {
                    tr hidden { td.detail colspan=(self.columns.len()) { (detail) } }
                }
            }
        }
    }
}

fn sort_key(value: Option<f64>) -> String {
    value
        .filter(|v| v.is_finite())
        .map_or_else(String::new, |v| v.to_string())
}

/// Texts as a list, each escaped.
pub(super) fn notes<'a>(notes: impl IntoIterator<Item = &'a String>) -> Markup {
    html! { ul.notes { @for note in notes { li { (Name(note)) } } } }
}

/// A text that can be copied.
pub(super) fn copyable(text: &str) -> Markup {
    html! { div.copyable { pre { (text) } button type="button" hidden { "Copy" } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"'&\u{202e}\u{7}\u{2028}";

    #[test]
    fn names_are_escaped_in_markup_and_in_data() {
        let html = html! { p title=(Name(HOSTILE)) { (name(HOSTILE)) } }.into_string();
        assert!(
            !html.contains("<img") && !html.contains("</script"),
            "{html}"
        );
        assert!(html.contains("\\u{202e}\\u{7}"), "{html}");
        let html = island("data", &[HOSTILE]).into_string();
        assert_eq!(html.matches('<').count(), 2, "{html}");
        assert!(
            !html.contains('\u{2028}') && html.contains("\\u003c/script"),
            "{html}"
        );
    }

    #[test]
    fn a_page_has_its_parts_and_no_address() {
        let page = Page {
            kind: "inspect",
            title: HOSTILE,
            head: html! { h1 { (name(HOSTILE)) } },
            sections: vec![Section {
                id: "one",
                short: "One",
                title: "The one",
                body: html! { p { "text" } },
            }],
            scripts: &[],
        }
        .render();
        assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">"));
        assert!(page.contains("<a href=\"#one\">One</a>"));
        assert!(page.contains("default-src 'none'"));
        assert!(!page.contains("http://") && !page.contains("https://"));
        assert_eq!(page.matches("<script").count(), 1);
    }

    #[test]
    fn tables_hide_what_is_too_much_and_open_rows() {
        let row = |v: f64| Row {
            cells: vec![
                Cell::text(name("a")),
                Cell::number(Some(v), |v| v.to_string()),
            ],
            detail: (v > 1.0).then(|| html! { "more" }),
            quiet: false,
        };
        let table = Table {
            id: "t",
            columns: &[Column::text("name"), Column::number("size").wide()],
            rows: vec![row(1.0), row(2.0)],
            shown: 1,
            search: Some("find"),
        };
        let html = table.render().into_string();
        assert!(html.contains("<tbody class=\"more opens\">"), "{html}");
        assert!(
            html.contains("<td class=\"n wide\" data-v=\"2\">2</td>"),
            "{html}"
        );
        assert!(html.contains("Show all 2"), "{html}");
    }
}
