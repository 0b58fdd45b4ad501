//! The templates: which files a plugin of a world in a language begins with.

use super::{Language, World};

/// A folder of templates: where a file goes, and what stands in it.
pub(super) type Files = [(&'static str, &'static str)];

macro_rules! source {
    ($($path:literal),+) => {
        include_str!(concat!("../../../../", $($path),+))
    };
}

macro_rules! rust {
    ($source:literal, $cases:literal) => {
        &[
            ("Cargo.toml", source!("sdk/rust/template/Cargo.toml.template")),
            ("src/lib.rs", source!($source)),
            ("cases/cases.toml", source!($cases)),
        ]
    };
}

macro_rules! python {
    ($source:literal, $test:literal, $cases:literal, $wit:literal) => {
        &[
            ("build.py", source!("plugins/examples/working-hours/build.py")),
            ("working_hours.py", source!($source)),
            ("test_working_hours.py", source!($test)),
            ("cases/cases.toml", source!($cases)),
            (concat!("wit/", $wit), source!("wit/", $wit)),
            ("wit/types.wit", source!("wit/types.wit")),
        ]
    };
}

macro_rules! javascript {
    ($folder:literal, $name:literal, $cases:literal, $wit:literal) => {
        &[
            ("package.json", source!("plugins/examples/by-department/package.json")),
            ("build.js", source!("plugins/examples/by-department/build.js")),
            ("plugin.js", source!($folder, "/plugin.js")),
            ("my-plugin.js", source!($folder, "/", $name, ".js")),
            ("my-plugin.test.js", source!($folder, "/", $name, ".test.js")),
            ("cases/cases.toml", source!($cases)),
            (concat!("wit/", $wit), source!("wit/", $wit)),
            ("wit/types.wit", source!("wit/types.wit")),
        ]
    };
}

macro_rules! typescript {
    ($world:literal, $cases:literal) => {
        &[
            ("package.json", source!("sdk/typescript/template/package.json")),
            ("tsconfig.json", source!("sdk/typescript/template/tsconfig.json")),
            ("tsconfig.test.json", source!("sdk/typescript/template/tsconfig.test.json")),
            ("build.js", source!("plugins/examples/by-department/build.js")),
            ("plugin.ts", source!("sdk/typescript/template/", $world, "/plugin.ts")),
            ("my-plugin.ts", source!("sdk/typescript/template/", $world, "/my-plugin.ts")),
            ("my-plugin.test.ts", source!("sdk/typescript/template/", $world, "/my-plugin.test.ts")),
            ("cases/cases.toml", source!($cases)),
            (concat!("wit/", $world, ".wit"), source!("wit/", $world, ".wit")),
            ("wit/types.wit", source!("wit/types.wit")),
        ]
    };
}

macro_rules! go {
    ($name:literal, $cases:literal) => {
        &[
            ("go.mod", source!("sdk/go/template/go.mod")),
            ("plugin.go", source!("sdk/go/template/", $name, ".go")),
            ("plugin_test.go", source!("sdk/go/template/", $name, "_test.go")),
            ("cases/cases.toml", source!($cases)),
        ]
    };
}

macro_rules! c {
    ($source:literal, $test:literal, $cases:literal) => {
        &[
            ("my_plugin.c", source!($source)),
            ("test_my_plugin.c", source!($test)),
            ("cases/cases.toml", source!($cases)),
        ]
    };
}

/// The template for a plugin of this world in this language, if there is one.
pub(super) const fn template(language: Language, world: World) -> Option<&'static Files> {
    Some(match (language, world) {
        (Language::Rust, World::Router) => {
            rust!("sdk/rust/template/src/lib.rs.template", "sdk/rust/template/cases/router.toml")
        }
        (Language::Rust, World::RetryPolicy) => rust!(
            "sdk/rust/template/src/retry_policy.rs.template",
            "sdk/rust/template/cases/retry-policy.toml"
        ),
        (Language::Rust, World::CostPolicy) => {
            rust!("sdk/rust/template/src/cost_policy.rs.template", "sdk/rust/template/cases/cost-policy.toml")
        }
        (Language::Rust, World::Engine) => {
            rust!("sdk/rust/template/src/engine.rs.template", "sdk/rust/template/cases/engine.toml")
        }
        (Language::Rust, World::Provider) => {
            rust!(
                "plugins/examples/parcel-post/src/lib.rs",
                "plugins/examples/parcel-post/cases/parcels.toml"
            )
        }
        (Language::Python, World::Router) => python!(
            "plugins/examples/working-hours/working_hours.py",
            "plugins/examples/working-hours/test_working_hours.py",
            "plugins/examples/working-hours/cases/hours.toml",
            "router.wit"
        ),
        (Language::Python, World::RetryPolicy) => python!(
            "plugins/examples/maintenance-hours/maintenance_hours.py",
            "plugins/examples/maintenance-hours/test_maintenance_hours.py",
            "plugins/examples/maintenance-hours/cases/nights.toml",
            "retry-policy.wit"
        ),
        (Language::Python, World::CostPolicy) => python!(
            "sdk/python/template/cost_policy.py",
            "sdk/python/template/test_cost_policy.py",
            "sdk/rust/template/cases/cost-policy.toml",
            "cost-policy.wit"
        ),
        (Language::Javascript, World::Router) => javascript!(
            "sdk/javascript/template/router",
            "my-plugin",
            "sdk/rust/template/cases/router.toml",
            "router.wit"
        ),
        (Language::Javascript, World::RetryPolicy) => javascript!(
            "sdk/javascript/template/retry-policy",
            "my-plugin",
            "sdk/rust/template/cases/retry-policy.toml",
            "retry-policy.wit"
        ),
        (Language::Javascript, World::CostPolicy) => javascript!(
            "plugins/examples/by-department",
            "by-department",
            "plugins/examples/by-department/cases/departments.toml",
            "cost-policy.wit"
        ),
        (Language::C, World::Router) => c!(
            "plugins/examples/by-size/by_size.c",
            "plugins/examples/by-size/test_by_size.c",
            "plugins/examples/by-size/cases/sizes.toml"
        ),
        (Language::C, World::RetryPolicy) => c!(
            "sdk/c/template/retry_policy.c",
            "sdk/c/template/test_retry_policy.c",
            "sdk/c/template/retry-policy.toml"
        ),
        (Language::C, World::CostPolicy) => c!(
            "sdk/c/template/cost_policy.c",
            "sdk/c/template/test_cost_policy.c",
            "sdk/c/template/cost-policy.toml"
        ),
        (Language::Typescript, World::Router) => {
            typescript!("router", "sdk/rust/template/cases/router.toml")
        }
        (Language::Typescript, World::RetryPolicy) => {
            typescript!("retry-policy", "sdk/rust/template/cases/retry-policy.toml")
        }
        (Language::Typescript, World::CostPolicy) => {
            typescript!("cost-policy", "sdk/rust/template/cases/cost-policy.toml")
        }
        (Language::Go, World::Router) => go!("router", "sdk/rust/template/cases/router.toml"),
        (Language::Go, World::RetryPolicy) => {
            go!("retry_policy", "sdk/rust/template/cases/retry-policy.toml")
        }
        (Language::Go, World::CostPolicy) => go!("cost_policy", "sdk/rust/template/cases/cost-policy.toml"),
        (
            Language::Python | Language::Javascript | Language::Typescript | Language::Go | Language::C,
            World::Provider | World::Engine,
        ) => return None,
    })
}
