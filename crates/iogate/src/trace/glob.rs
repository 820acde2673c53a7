//! Patterns over event names: `*` is any run of characters, `?` any one.

/// Whether `name` matches `pattern` as a whole.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on from when the text after the last `*` does not fit.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(c) if *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match retry {
                Some((after, from)) => {
                    retry = Some((after, from + 1));
                    (p, n) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_run() {
        assert!(matches("*", "dma_fault"));
        assert!(matches("ioctl_*", "ioctl_map_dma"));
        assert!(matches("*_dma", "ioctl_map_dma"));
        assert!(matches("i*m*a", "ioctl_map_dma"));
        assert!(!matches("ioctl_*x", "ioctl_map_dma"));
        assert!(!matches("ioctl", "ioctl_map_dma"));
    }

    #[test]
    fn a_question_mark_stands_for_one_character() {
        assert!(matches("irq_fir?", "irq_fire"));
        assert!(!matches("irq_fire?", "irq_fire"));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let name = "a".repeat(200);
        assert!(!matches(
            &"*a".repeat(100).replace("*a", "*a*a"),
            &name.replace('a', "b")
        ));
    }
}
