//! The corpora of the fuzz targets, replayed.

use std::{fs, path::Path};

#[path = "../../fuzz/checks.rs"]
mod checks;

#[test]
fn what_the_fuzz_targets_are_given_first_passes() {
    for (target, check) in checks::ALL {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files: Vec<_> = fs::read_dir(&corpus).unwrap().map(|it| it.unwrap().path()).collect();
        assert!(files.len() > 3, "{}", corpus.display());
        for file in files {
            #[expect(clippy::print_stdout, reason = "it is shown if the check fails")]
            (println!("{}", file.display()));
            check(&fs::read(&file).unwrap());
        }
    }
}
