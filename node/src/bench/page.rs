//! A report for a browser: one file, no script, nothing from elsewhere, light and dark.

use std::fmt::Write as _;

use super::plot::{Plot, escape};
use super::report::Machine;

/// A report under construction.
#[derive(Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty report, with what a reader needs to repeat it.
    pub fn new(title: &str, machine: &Machine, command: &str) -> Page {
        let mut body = format!("<h1>{}</h1>", escape(title));
        let cores = if machine.cores == 1 { "core" } else { "cores" };
        // Writing into a String cannot fail.
        let _ = writeln!(
            body,
            "<p class=about>hallway {} on {}, {} {cores}, Linux {}, {}</p><pre>{}</pre>",
            env!("CARGO_PKG_VERSION"),
            escape(&machine.cpu),
            machine.cores,
            escape(&machine.kernel),
            escape(&machine.date),
            escape(command)
        );
        Page { title: title.to_owned(), body }
    }

    /// Begins a part.
    pub fn heading(&mut self, text: &str, about: &str) {
        let _ = write!(self.body, "<h2>{}</h2>", escape(text));
        if !about.is_empty() {
            let _ = writeln!(self.body, "<p>{}</p>", escape(about));
        }
    }

    /// A table; the first cell of a row is its label.
    pub fn table(&mut self, head: &[String], rows: &[Vec<String>]) {
        let row = |cells: &[String], tag: &str| {
            let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
            format!("<tr>{}</tr>", cells.collect::<String>())
        };
        self.body.push_str("<div class=wide><table><thead>");
        self.body.push_str(&row(head, "th"));
        self.body.push_str("</thead><tbody>");
        rows.iter().for_each(|cells| self.body.push_str(&row(cells, "td")));
        self.body.push_str("</tbody></table></div>\n");
    }

    /// Pictures side by side. One without points is left out.
    pub fn plots(&mut self, plots: &[Plot]) {
        self.body.push_str("<div class=plots>");
        for plot in plots.iter().filter(|plot| plot.series.iter().any(|s| !s.points.is_empty())) {
            self.body.push_str(&plot.html());
        }
        self.body.push_str("</div>\n");
    }

    /// A remark.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=note>{}</p>", escape(text));
    }

    /// The whole file.
    pub fn html(&self) -> String {
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{}</title><style>{STYLE}</style><main>\n{}</main></html>\n",
            escape(&self.title),
            self.body
        )
    }
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_file_that_asks_nobody_for_anything() {
        let machine =
            Machine { cpu: "<b>".into(), cores: 1, kernel: "6".into(), date: "2026-11-23T10:00:00Z".into() };
        let mut page = Page::new("lag & loss", &machine, "hallway bench lag --link 'delay=1'");
        page.heading("wan", "far");
        page.table(&["".into(), "a > b".into()], &[vec!["p50".into(), "61.0".into()]]);
        page.plots(&[]);
        let html = page.html();
        assert!(html.contains("<td>61.0</td>") && html.contains("a &gt; b") && html.contains("&lt;b&gt;"));
        for foreign in ["http:", "https:", "src=", "<script", "@import", "url("] {
            assert!(!html.contains(foreign), "{foreign}");
        }
    }
}
