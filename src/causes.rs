//! What is behind an error, in words.

use std::error::Error;

/// The error and its causes, in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).join(": ")
}

/// The error and its causes, each in words of its own.
///
/// Some errors already end with what their source says. And of the layers of a web client only the
/// innermost says what happened.
pub fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(mut cause) = next {
        while let (true, Some(inner)) = (cause.is::<reqwest::Error>(), cause.source()) {
            cause = innermost(inner);
        }
        let text = cause.to_string();
        if !texts.last().is_some_and(|it| it.ends_with(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts
}

fn innermost<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(inner) = error.source() {
        error = inner;
    }
    error
}
