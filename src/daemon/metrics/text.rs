//! The text format of Prometheus, version 0.0.4: `HELP`, `TYPE`, then the samples of one family.

use std::fmt::Write;

/// A text under construction.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn finish(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Help texts are ours, without line ends or backslashes.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let begin = if place == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{begin}{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A family with one gauge and no labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Number) {
        self.head(name, "gauge", help);
        self.sample(name, &[], &value.text());
    }

    /// The same; without a value the family is left out.
    pub(super) fn gauge_if(&mut self, name: &str, help: &str, value: Option<impl Number>) {
        if let Some(value) = value {
            self.gauge(name, help, value);
        }
    }

    /// A family with one counter and no labels.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Number) {
        self.head(name, "counter", help);
        self.sample(name, &[], &value.text());
    }

    /// A counter for each value of one label.
    pub(super) fn counters<'a>(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, "counter", help);
        for (of, value) in values {
            self.sample(name, &[(label, of)], &value.text());
        }
    }

    /// A gauge for each state: 1 for the one that holds.
    pub(super) fn states(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        states: &[(&str, bool)],
    ) {
        self.head(name, "gauge", help);
        for (state, holds) in states {
            self.sample(name, &[(label, state)], &u64::from(*holds).text());
        }
    }

    /// A gauge of 1 whose labels say what there is to say.
    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.head(name, "gauge", help);
        self.sample(name, labels, "1");
    }

    /// Begins a family of histograms.
    pub(super) fn histograms(&mut self, name: &str, help: &str) {
        self.head(name, "histogram", help);
    }

    /// A histogram. `counts` has one count for each bound, and one for what is above all of them.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        label: Option<(&str, &str)>,
        (bounds, counts): (&[f64], &[u64]),
        sum: f64,
    ) {
        let mut below = 0;
        let bucket = format!("{name}_bucket");
        let own: Vec<(&str, &str)> = label.into_iter().collect();
        let ends = bounds.iter().map(|bound| bound.text());
        for (end, count) in ends.chain(["+Inf".to_string()]).zip(counts) {
            below += count;
            let mut labels = own.clone();
            labels.push(("le", &end));
            self.sample(&bucket, &labels, &below.text());
        }
        self.sample(&format!("{name}_sum"), &own, &sum.text());
        self.sample(&format!("{name}_count"), &own, &below.text());
    }
}

/// A value of a sample.
pub(super) trait Number {
    fn text(&self) -> String;
}

impl Number for u64 {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Number for bool {
    fn text(&self) -> String {
        u64::from(*self).to_string()
    }
}

impl Number for f64 {
    fn text(&self) -> String {
        self.to_string()
    }
}

/// The value of a label: a backslash, a quote and a line end are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_ends_where_it_should() {
        let mut text = Text::default();
        text.info("a_info", "An a.", &[("x", "1\"}\n\\"), ("y", "")]);
        assert_eq!(
            text.finish(),
            "# HELP a_info An a.\n# TYPE a_info gauge\na_info{x=\"1\\\"}\\n\\\\\",y=\"\"} 1\n"
        );
    }

    #[test]
    fn buckets_are_cumulative_and_the_last_one_is_the_count() {
        let mut text = Text::default();
        text.histograms("h", "An h.");
        text.histogram("h", Some(("k", "v")), (&[0.5, 1.0], &[1, 2, 3]), 7.25);
        let lines: Vec<String> = text.finish().lines().skip(2).map(Into::into).collect();
        assert_eq!(
            lines,
            [
                "h_bucket{k=\"v\",le=\"0.5\"} 1",
                "h_bucket{k=\"v\",le=\"1\"} 3",
                "h_bucket{k=\"v\",le=\"+Inf\"} 6",
                "h_sum{k=\"v\"} 7.25",
                "h_count{k=\"v\"} 6",
            ]
        );
    }
}
