//! Links in what others wrote: shown in full, with the name that a browser would really ask for. Never opened.

/// Most that is said about the links of one line: further ones stay as they were written.
pub const MAX_LINKS: usize = 8;

/// The line with ` [host in ASCII]` behind each link whose host is written in other letters. What is in ASCII already shows
/// where it goes; to draw it would help only those who imitate.
pub fn revealed(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut links = 0;
    for (at, word) in line.split(' ').enumerate() {
        if at > 0 {
            out.push(' ');
        }
        out.push_str(word);
        if links < MAX_LINKS
            && let Some(host) = host_of(word)
            && let Some(other) = other_spelling(host)
        {
            links += 1;
            out.push_str(&format!(" [{other}]"));
        }
    }
    out
}

/// The host of a word that looks like a link, between user and port.
fn host_of(word: &str) -> Option<&str> {
    let rest = match word.split_once("://") {
        Some((_, rest)) => rest,
        None => word.get(word.to_ascii_lowercase().find("www.")?..)?,
    };
    let end = rest.find(['/', '?', '#', '\\', ')', '>', '"', ',']).unwrap_or(rest.len());
    let authority = rest.get(..end)?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split(':').next().unwrap_or(host).trim_end_matches('.');
    (!host.is_empty()).then_some(host)
}

fn other_spelling(host: &str) -> Option<String> {
    let foreign = !host.is_ascii();
    foreign.then(|| idna::domain_to_ascii(host).unwrap_or_else(|_| "no valid host".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_foreign_letters_shows_where_it_really_goes() {
        assert_eq!(
            revealed("see https://аpple.com/login now"),
            "see https://аpple.com/login [xn--pple-43d.com] now"
        );
        assert_eq!(
            revealed("http://user@bücher.example:80/"),
            "http://user@bücher.example:80/ [xn--bcher-kva.example]"
        );
        assert_eq!(revealed("www.bücher.example"), "www.bücher.example [www.xn--bcher-kva.example]");
    }

    #[test]
    fn ordinary_text_and_links_stay_as_they_are() {
        for line in [
            "hello",
            "https://example.com/ü?x=1#ö",
            "https://xn--pple-43d.com/a",
            "12:30 à la carte",
            "a  b",
            "http://",
            "://",
            "www.",
        ] {
            assert_eq!(revealed(line), line);
        }
    }

    #[test]
    fn a_line_full_of_links_grows_by_a_bound() {
        let line = "https://ü.de ".repeat(300);
        assert!(revealed(&line).len() < line.len() + MAX_LINKS * 40);
    }
}
