//! Reading and writing back gives what was read: the decoded messages are equal, with the
//! order of everything and with what is absent told from what is empty.

use std::path::Path;

use bytes::Bytes;
use paring::onnx::{
    ExternalData, ReadOptions, WriteOptions, read_bytes, read_file, to_bytes, write_file,
};
use paring_ir::{DType, Graph, Model, NewOp, Tensor};
use prost::Message;

#[allow(dead_code, missing_docs, unused_qualifications, clippy::all)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

use proto::attribute_proto::AttributeType as Kind;
use proto::tensor_proto::DataType;
use proto::tensor_shape_proto::{Dimension, dimension};
use proto::type_proto::Value as TypeValue;
use proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, StringStringEntryProto, TensorAnnotation, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto,
};

// ---- what models are made of ----

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn pair(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: some(key),
        value: some(value),
    }
}

fn dim(value: i64) -> Dimension {
    Dimension {
        value: Some(dimension::Value::DimValue(value)),
        denotation: None,
    }
}

fn tensor_type(dims: Vec<Dimension>) -> TypeProto {
    TypeProto {
        value: Some(TypeValue::TensorType(proto::type_proto::Tensor {
            elem_type: Some(DataType::Float as i32),
            shape: Some(TensorShapeProto { dim: dims }),
        })),
        denotation: None,
    }
}

fn info(name: &str, ty: Option<TypeProto>) -> ValueInfoProto {
    ValueInfoProto {
        name: some(name),
        r#type: ty.map(Box::new),
        ..Default::default()
    }
}

fn floats(name: &str) -> ValueInfoProto {
    info(name, Some(tensor_type(vec![dim(2)])))
}

fn weights(name: &str) -> TensorProto {
    TensorProto {
        name: some(name),
        dims: vec![2],
        data_type: Some(DataType::Float as i32),
        raw_data: Some(Bytes::from_static(&[0, 0, 128, 63, 0, 0, 0, 64])),
        ..Default::default()
    }
}

fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let texts = |list: &[&str]| list.iter().map(|&t| t.to_owned()).collect();
    NodeProto {
        op_type: some(op_type),
        input: texts(inputs),
        output: texts(outputs),
        ..Default::default()
    }
}

fn attr(name: &str, kind: Kind) -> AttributeProto {
    AttributeProto {
        name: some(name),
        r#type: Some(kind as i32),
        ..Default::default()
    }
}

fn opset(domain: Option<&str>, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: domain.map(str::to_owned),
        version: Some(version),
    }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset(Some(""), 17)],
        graph: Some(graph),
        ..Default::default()
    }
}

/// x -> Add(w) -> y.
fn add() -> GraphProto {
    GraphProto {
        name: some("g"),
        node: vec![node("Add", &["x", "w"], &["y"])],
        input: vec![floats("x")],
        output: vec![floats("y")],
        initializer: vec![weights("w")],
        ..Default::default()
    }
}

// ---- the check ----

/// Reads the message, checks the graph, writes it, and answers what was written.
fn back(message: &ModelProto) -> ModelProto {
    let bytes = Bytes::from(message.encode_to_vec());
    let loaded = read_bytes(bytes, None, &ReadOptions::default()).expect("a valid model");
    loaded
        .model
        .graph
        .check_invariants()
        .expect("a sound graph");
    let written = to_bytes(&loaded.model).expect("it can be written");
    ModelProto::decode(&written[..]).expect("what was written decodes")
}

#[track_caller]
fn same(message: ModelProto) {
    pretty_eq(&back(&message), &message);
}

#[track_caller]
fn pretty_eq(found: &ModelProto, expected: &ModelProto) {
    if found != expected {
        assert_eq!(format!("{found:#?}"), format!("{expected:#?}"));
    }
}

fn refused(message: &ModelProto) -> String {
    let bytes = Bytes::from(message.encode_to_vec());
    read_bytes(bytes, None, &ReadOptions::default())
        .expect_err("it must be refused")
        .to_string()
}

// ---- models ----

#[test]
fn a_plain_model_comes_back_byte_by_byte() {
    let message = model(add());
    let bytes = Bytes::from(message.encode_to_vec());
    let loaded = read_bytes(bytes.clone(), None, &ReadOptions::default()).expect("a valid model");
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.file_bytes, bytes.len() as u64);
    assert_eq!(to_bytes(&loaded.model).expect("it can be written"), bytes);
}

#[test]
fn everything_around_the_graph_is_kept() {
    same(ModelProto {
        producer_name: some("maker"),
        producer_version: some(""),
        domain: some("org.example"),
        model_version: Some(-3),
        doc_string: some("what it is for"),
        opset_import: vec![
            opset(Some("ai.onnx"), 17),
            opset(Some("com.example"), 1),
            opset(Some("ai.onnx.ml"), 3),
        ],
        metadata_props: vec![pair("b", "1"), pair("a", ""), pair("b", "2")],
        training_info: vec![proto::TrainingInfoProto {
            initialization: Some(add()),
            algorithm: Some(add()),
            initialization_binding: vec![pair("w", "y")],
            update_binding: vec![pair("w", "y")],
        }],
        configuration: vec![proto::DeviceConfigurationProto {
            name: some("two"),
            num_devices: Some(2),
            device: vec!["a".into(), "b".into()],
        }],
        ..model(add())
    });
}

#[test]
fn absent_and_empty_are_told_apart() {
    same(ModelProto {
        ir_version: None,
        opset_import: vec![opset(None, 17)],
        ..model(GraphProto {
            name: None,
            ..add()
        })
    });
    same(model(GraphProto {
        name: some(""),
        doc_string: some(""),
        ..add()
    }));
    for (name, domain, overload, doc) in [
        (None, None, None, None),
        (some(""), some(""), some(""), some("")),
        (some("n"), some("ai.onnx"), some("o"), some("d")),
        (None, some("com.example"), None, None),
    ] {
        same(model(GraphProto {
            node: vec![NodeProto {
                name,
                domain,
                overload,
                doc_string: doc,
                ..node("Add", &["x", "w"], &["y"])
            }],
            ..add()
        }));
    }
    same(ModelProto {
        graph: None,
        ..model(add())
    });
}

#[test]
fn rare_parts_of_graphs_and_nodes_are_kept() {
    same(model(GraphProto {
        doc_string: some("doc"),
        metadata_props: vec![pair("k", "v")],
        quantization_annotation: vec![
            TensorAnnotation {
                tensor_name: some("x"),
                quant_parameter_tensor_names: vec![pair("SCALE_TENSOR", "w")],
            },
            TensorAnnotation::default(),
        ],
        node: vec![NodeProto {
            metadata_props: vec![pair("k", "v")],
            device_configurations: vec![proto::NodeDeviceConfigurationProto {
                configuration_id: some("two"),
                pipeline_stage: Some(1),
                sharding_spec: vec![proto::ShardingSpecProto {
                    tensor_name: some("x"),
                    device: vec![0, 1],
                    sharded_dim: vec![proto::ShardedDimProto {
                        axis: Some(0),
                        simple_sharding: vec![proto::SimpleShardedDimProto {
                            num_shards: Some(2),
                            dim: Some(proto::simple_sharded_dim_proto::Dim::DimValue(2)),
                        }],
                    }],
                    ..Default::default()
                }],
            }],
            ..node("Add", &["x", "w"], &["y"])
        }],
        ..add()
    }));
}

#[test]
fn absent_inputs_and_outputs_keep_their_places() {
    same(model(GraphProto {
        node: vec![
            node("Clip", &["x", "", "w"], &["y"]),
            node("Dropout", &["x", "", ""], &["a", ""]),
            node("LSTM", &["x"], &["", "b"]),
            node("Nothing", &[], &[]),
        ],
        ..add()
    }));
}

#[test]
fn names_may_be_used_that_nothing_makes() {
    same(model(GraphProto {
        node: vec![node("Add", &["x", "from nowhere"], &["y"])],
        output: vec![floats("y"), floats("y"), floats("nobody")],
        value_info: vec![floats("unheard"), floats("x"), floats("from nowhere")],
        ..add()
    }));
}

#[test]
fn unsorted_nodes_are_connected_and_sorted() {
    let unsorted = model(GraphProto {
        node: vec![node("Relu", &["t"], &["y"]), node("Neg", &["x"], &["t"])],
        ..add()
    });
    let written = back(&unsorted);
    let nodes = written.graph.expect("a graph").node;
    let types: Vec<_> = nodes.iter().map(|n| n.op_type()).collect();
    assert_eq!(types, ["Neg", "Relu"]);
}

// ---- attributes ----

#[test]
fn every_kind_of_attribute_is_kept() {
    let sparse = SparseTensorProto {
        values: Some(weights("values")),
        indices: Some(TensorProto {
            dims: vec![2, 2],
            data_type: Some(DataType::Int64 as i32),
            int64_data: vec![0, 1, 2, 0],
            ..Default::default()
        }),
        dims: vec![3, 2],
    };
    let attributes = vec![
        AttributeProto {
            f: Some(-0.0),
            doc_string: some("doc"),
            ..attr("f", Kind::Float)
        },
        AttributeProto {
            i: Some(i64::MIN),
            ..attr("i", Kind::Int)
        },
        AttributeProto {
            s: Some(Bytes::from_static(b"\xff not text")),
            ..attr("s", Kind::String)
        },
        AttributeProto {
            t: Some(Box::new(weights("named"))),
            ..attr("t", Kind::Tensor)
        },
        AttributeProto {
            floats: vec![1.5, f32::INFINITY],
            ..attr("floats", Kind::Floats)
        },
        AttributeProto {
            ints: vec![-1, i64::MAX],
            ..attr("ints", Kind::Ints)
        },
        AttributeProto {
            strings: vec![Bytes::new(), Bytes::from_static(b"b")],
            ..attr("strings", Kind::Strings)
        },
        AttributeProto {
            tensors: vec![
                weights(""),
                TensorProto {
                    name: None,
                    ..weights("")
                },
            ],
            ..attr("tensors", Kind::Tensors)
        },
        AttributeProto {
            sparse_tensor: Some(Box::new(sparse.clone())),
            ..attr("sparse", Kind::SparseTensor)
        },
        AttributeProto {
            sparse_tensors: vec![sparse],
            ..attr("sparses", Kind::SparseTensors)
        },
        AttributeProto {
            tp: Some(Box::new(tensor_type(vec![dim(1)]))),
            ..attr("type", Kind::TypeProto)
        },
        AttributeProto {
            type_protos: vec![tensor_type(vec![]), tensor_type(vec![dim(1)])],
            ..attr("types", Kind::TypeProtos)
        },
        // What proto3 writers leave out, and what IR version 1 did.
        attr("zero", Kind::Int),
        attr("zero_f", Kind::Float),
        attr("empty", Kind::String),
        attr("no_ints", Kind::Ints),
        attr("no_graphs", Kind::Graphs),
        AttributeProto {
            ints: vec![3],
            r#type: None,
            ..attr("untyped", Kind::Ints)
        },
        AttributeProto {
            f: Some(0.0),
            r#type: None,
            ..attr("untyped_f", Kind::Float)
        },
    ];
    same(model(GraphProto {
        node: vec![NodeProto {
            attribute: attributes,
            domain: some("com.example"),
            ..node("Everything", &["x"], &["y"])
        }],
        ..add()
    }));
}

#[test]
fn contradictory_attributes_are_refused() {
    let with = |a: Vec<AttributeProto>| {
        refused(&model(GraphProto {
            node: vec![NodeProto {
                name: some("n\u{1b}[2J"),
                attribute: a,
                ..node("Odd", &["x"], &["y"])
            }],
            ..add()
        }))
    };
    let two = AttributeProto {
        f: Some(1.0),
        i: Some(1),
        ..attr("a", Kind::Int)
    };
    assert_eq!(
        with(vec![two]),
        "main_graph / Odd \"n\\u{1b}[2J\" / attribute \"a\": there are two values, a Float and a Int; expected one"
    );
    let other = AttributeProto {
        f: Some(1.0),
        ..attr("a", Kind::Int)
    };
    assert!(with(vec![other]).contains("the kind is Int, the value is a Float"));
    let nothing = AttributeProto {
        r#type: None,
        ..attr("a", Kind::Int)
    };
    assert!(with(vec![nothing]).contains("neither a kind nor a value"));
    assert!(with(vec![attr("a", Kind::Tensor)]).contains("there is no value"));
    assert!(with(vec![attr("", Kind::Int)]).contains("attribute 0 has no name"));
    let twice = with(vec![
        attr("a", Kind::Int),
        attr("b", Kind::Int),
        attr("a", Kind::Int),
    ]);
    assert!(twice.contains("two attributes have this name"), "{twice}");
    let unknown = AttributeProto {
        r#type: Some(77),
        ..attr("a", Kind::Int)
    };
    assert!(with(vec![unknown]).contains("the kind is 77"));
}

// ---- tensors ----

#[test]
fn elements_stay_in_the_field_where_they_stood() {
    let of = |data_type: DataType, dims: &[i64], edit: &dyn Fn(&mut TensorProto)| {
        let mut t = TensorProto {
            name: some("w"),
            dims: dims.to_vec(),
            data_type: Some(data_type as i32),
            ..Default::default()
        };
        edit(&mut t);
        t
    };
    use DataType as D;
    let tensors = [
        of(D::Float, &[2], &|t| t.float_data = vec![-0.0, 2.5]),
        of(D::Complex64, &[1], &|t| t.float_data = vec![1.0, 2.0]),
        of(D::Double, &[1], &|t| t.double_data = vec![1e300]),
        of(D::Complex128, &[1], &|t| t.double_data = vec![1.0, 2.0]),
        of(D::Int64, &[2], &|t| t.int64_data = vec![i64::MIN, -1]),
        of(D::Uint64, &[1], &|t| t.uint64_data = vec![u64::MAX]),
        of(D::Uint32, &[1], &|t| {
            t.uint64_data = vec![u64::from(u32::MAX)]
        }),
        of(D::Int32, &[2], &|t| t.int32_data = vec![i32::MIN, 7]),
        of(D::Int16, &[1], &|t| t.int32_data = vec![-32768]),
        of(D::Uint16, &[1], &|t| t.int32_data = vec![65535]),
        of(D::Int8, &[1], &|t| t.int32_data = vec![-128]),
        of(D::Uint8, &[1], &|t| t.int32_data = vec![255]),
        of(D::Bool, &[2], &|t| t.int32_data = vec![1, 0]),
        of(D::Float16, &[1], &|t| t.int32_data = vec![0xfbff]),
        of(D::Bfloat16, &[1], &|t| t.int32_data = vec![0x3f80]),
        of(D::Float8e4m3fn, &[1], &|t| t.int32_data = vec![0xfe]),
        of(D::Float8e8m0, &[1], &|t| t.int32_data = vec![0x7f]),
        of(D::Int4, &[3], &|t| t.int32_data = vec![0xf1, 0x08]),
        of(D::Float4e2m1, &[1], &|t| t.int32_data = vec![0x07]),
        of(D::Uint2, &[5], &|t| t.int32_data = vec![0xe4, 0x02]),
        of(D::String, &[2], &|t| {
            t.string_data = vec![Bytes::from_static(b"a"), Bytes::from_static(b"\xff")];
        }),
        of(D::Float, &[0, 3], &|_| {}),
        of(D::Float, &[0], &|t| t.raw_data = Some(Bytes::new())),
        of(D::Int4, &[3], &|t| {
            t.raw_data = Some(Bytes::from_static(&[1, 2]))
        }),
        of(D::Float, &[], &|t| t.float_data = vec![1.0]),
        of(D::Uint8, &[2], &|t| {
            t.raw_data = Some(Bytes::from_static(&[1, 2]));
            t.doc_string = some("doc");
            t.metadata_props = vec![pair("k", "v")];
            t.data_location = Some(0);
            t.segment = Some(Box::new(proto::tensor_proto::Segment {
                begin: Some(0),
                end: None,
            }));
        }),
    ];
    for tensor in tensors {
        same(model(GraphProto {
            initializer: vec![tensor],
            ..add()
        }));
    }
}

#[test]
fn large_typed_tensors_are_kept() {
    let count = 5000i64;
    same(model(GraphProto {
        initializer: vec![
            TensorProto {
                name: some("floats"),
                dims: vec![count],
                data_type: Some(DataType::Float as i32),
                float_data: (0..count).map(|i| i as f32).collect(),
                ..Default::default()
            },
            TensorProto {
                name: some("doubles"),
                dims: vec![count],
                data_type: Some(DataType::Double as i32),
                double_data: (0..count).map(|i| i as f64).collect(),
                ..Default::default()
            },
        ],
        ..add()
    }));
}

#[test]
fn bad_tensors_are_refused_with_their_name() {
    let with = |edit: &dyn Fn(&mut TensorProto)| {
        let mut t = weights("w");
        edit(&mut t);
        refused(&model(GraphProto {
            initializer: vec![t],
            ..add()
        }))
    };
    let start = "main_graph / initializer \"w\": ";
    for (edit, problem) in [
        (
            (&|t: &mut TensorProto| t.dims = vec![3]) as &dyn Fn(&mut TensorProto),
            "float tensor of shape [3] needs 12 bytes, found 8",
        ),
        (
            &|t| t.dims = vec![-2],
            "dimension 0 is -2, expected 0 or more",
        ),
        (
            &|t| t.dims = vec![i64::MAX, i64::MAX],
            "the size of shape [9223372036854775807, 9223372036854775807] overflows",
        ),
        (
            &|t| t.data_type = None,
            "the element type is not given (undefined)",
        ),
        (
            &|t| t.data_type = Some(27),
            "element type 27 (float6e2m3) is not supported, expected 1 to 26",
        ),
        (
            &|t| t.float_data = vec![1.0, 2.0],
            "elements stand in raw_data and in float_data",
        ),
        (
            &|t| {
                t.raw_data = None;
                t.int32_data = vec![1, 2];
            },
            "elements stand in int32_data, those of float tensors belong in float_data",
        ),
        (
            &|t| t.raw_data = None,
            "float tensor of shape [2] needs 8 bytes, found 0",
        ),
        (
            &|t| {
                t.raw_data = None;
                t.data_type = Some(DataType::Uint8 as i32);
                t.int32_data = vec![1, 256];
            },
            "element 1 is 256, which is no uint8",
        ),
        (
            &|t| {
                t.raw_data = None;
                t.data_type = Some(DataType::Bool as i32);
                t.int32_data = vec![1, 2];
            },
            "int32_data[1] is no bool, expected 0 or 1",
        ),
        (
            &|t| t.data_type = Some(DataType::String as i32),
            "the elements are strings, which can't stand in raw_data",
        ),
    ] {
        assert_eq!(with(edit), format!("{start}{problem}"));
    }
    let no_name = with(&|t| t.name = some(""));
    assert!(no_name.contains("an initializer has no name"), "{no_name}");
}

#[test]
fn sparse_initializers_are_kept_and_checked() {
    let sparse = |positions: Vec<i64>| SparseTensorProto {
        values: Some(weights("s")),
        indices: Some(TensorProto {
            name: some("positions"),
            dims: vec![2],
            data_type: Some(DataType::Int64 as i32),
            int64_data: positions,
            ..Default::default()
        }),
        dims: vec![3, 2],
    };
    let with = |positions| {
        model(GraphProto {
            sparse_initializer: vec![sparse(positions)],
            ..add()
        })
    };
    same(with(vec![0, 5]));
    for positions in [vec![0, 6], vec![1, 1], vec![-1, 2], vec![3, 0]] {
        assert!(refused(&with(positions)).contains("sparse initializer \"s\": index"));
    }
}

// ---- values ----

#[test]
fn every_type_is_kept() {
    let wrap = |value| TypeProto {
        value: Some(value),
        denotation: None,
    };
    let inner = || Some(Box::new(tensor_type(vec![dim(1)])));
    let dims = vec![
        dim(-1),
        Dimension::default(),
        Dimension {
            value: Some(dimension::Value::DimParam("batch".into())),
            denotation: some("DATA_BATCH"),
        },
        Dimension {
            value: Some(dimension::Value::DimParam(String::new())),
            denotation: None,
        },
    ];
    let types = vec![
        tensor_type(dims.clone()),
        TypeProto {
            denotation: some("IMAGE"),
            ..tensor_type(dims)
        },
        wrap(TypeValue::TensorType(proto::type_proto::Tensor {
            elem_type: None,
            shape: None,
        })),
        wrap(TypeValue::TensorType(proto::type_proto::Tensor {
            elem_type: Some(0),
            shape: Some(TensorShapeProto::default()),
        })),
        wrap(TypeValue::TensorType(proto::type_proto::Tensor {
            elem_type: Some(99),
            shape: None,
        })),
        wrap(TypeValue::SparseTensorType(
            proto::type_proto::SparseTensor {
                elem_type: Some(1),
                shape: Some(TensorShapeProto { dim: vec![dim(1)] }),
            },
        )),
        wrap(TypeValue::SequenceType(Box::new(
            proto::type_proto::Sequence { elem_type: inner() },
        ))),
        wrap(TypeValue::OptionalType(Box::new(
            proto::type_proto::Optional { elem_type: None },
        ))),
        wrap(TypeValue::MapType(Box::new(proto::type_proto::Map {
            key_type: Some(7),
            value_type: inner(),
        }))),
        wrap(TypeValue::OpaqueType(proto::type_proto::Opaque {
            domain: None,
            name: some("thing"),
        })),
        TypeProto::default(),
    ];
    let infos = types.into_iter().enumerate();
    let mut infos: Vec<_> = infos
        .map(|(i, t)| info(&format!("v{i}"), Some(t)))
        .collect();
    infos.push(info("untyped", None));
    same(model(GraphProto {
        input: infos.clone(),
        ..add()
    }));
    same(model(GraphProto {
        output: infos.clone(),
        ..add()
    }));
    same(model(GraphProto {
        value_info: infos,
        ..add()
    }));
}

#[test]
fn a_value_may_be_described_many_times() {
    let described = |doc: &str, size: i64| ValueInfoProto {
        doc_string: some(doc),
        metadata_props: vec![pair("k", doc)],
        ..info("x", Some(tensor_type(vec![dim(size)])))
    };
    same(model(GraphProto {
        input: vec![described("in", 1)],
        output: vec![described("out", 2), floats("y"), described("again", 3)],
        value_info: vec![described("a", 4), floats("w"), info("x", None), floats("w")],
        ..add()
    }));
}

#[test]
fn what_a_pass_changed_is_written_anew() {
    let message = model(GraphProto {
        value_info: vec![info("y", Some(TypeProto::default()))],
        ..add()
    });
    let bytes = Bytes::from(message.encode_to_vec());
    let mut loaded = read_bytes(bytes, None, &ReadOptions::default()).expect("a valid model");
    let graph = &mut loaded.model.graph;
    let w = graph.find_value("w").expect("w");
    graph
        .set_tensor(w, Tensor::vector(vec![1i64, 2, 3]), Vec::new())
        .expect("a new tensor");
    let written = to_bytes(&loaded.model).expect("it can be written");
    let graph = ModelProto::decode(&written[..])
        .expect("decodes")
        .graph
        .expect("a graph");
    assert_eq!(graph.initializer[0].dims, [3]);
    assert_eq!(graph.initializer[0].data_type, Some(DataType::Int64 as i32));
}

#[test]
fn training_information_is_dropped_once_the_model_changed() {
    let message = ModelProto {
        training_info: vec![proto::TrainingInfoProto::default()],
        ..model(add())
    };
    same(message.clone());
    let bytes = Bytes::from(message.encode_to_vec());
    let mut loaded = read_bytes(bytes, None, &ReadOptions::default()).expect("a valid model");
    loaded.model.graph.set_name("other");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    let report = write_file(&loaded.model, &path, &WriteOptions::default()).expect("written");
    assert!(report.warnings[0].contains("training information"));
    let written = std::fs::read(&path).expect("the file");
    assert!(
        ModelProto::decode(&written[..])
            .expect("decodes")
            .training_info
            .is_empty()
    );
}

#[test]
fn names_have_one_source() {
    let graph = |edit: &dyn Fn(&mut GraphProto)| {
        let mut g = add();
        edit(&mut g);
        refused(&model(g))
    };
    let twice = graph(&|g| g.node.push(node("Relu", &["x"], &["y"])));
    assert!(
        twice.contains("main_graph / Relu \"y\": \"y\" already has a source"),
        "{twice}"
    );
    let inputs = graph(&|g| g.input.push(floats("x")));
    assert!(inputs.contains("input \"x\": two graph inputs"), "{inputs}");
    let initializers = graph(&|g| g.initializer.push(weights("w")));
    assert!(
        initializers.contains("two initializers have this name"),
        "{initializers}"
    );
    let made = graph(&|g| g.node.push(node("Relu", &["x"], &["w"])));
    assert!(made.contains("\"w\" already has a source"), "{made}");
    let both = graph(&|g| g.node.push(node("Split", &["x"], &["a", "a"])));
    assert!(both.contains("two outputs have the same name"), "{both}");
    let nameless = graph(&|g| g.output.push(floats("")));
    assert!(
        nameless.contains("a graph output has no name"),
        "{nameless}"
    );
    let no_type = graph(&|g| g.node.push(node("", &["x"], &["z"])));
    assert!(
        no_type.contains("node \"z\": the operator type is not given"),
        "{no_type}"
    );
}

#[test]
fn old_models_list_their_initializers_as_inputs() {
    let old = ModelProto {
        ir_version: Some(3),
        opset_import: vec![opset(Some(""), 8)],
        ..model(GraphProto {
            input: vec![floats("w"), floats("x")],
            ..add()
        })
    };
    same(old.clone());
    let bytes = Bytes::from(old.encode_to_vec());
    let mut loaded = read_bytes(bytes, None, &ReadOptions::default()).expect("a valid model");
    let graph = &loaded.model.graph;
    assert_eq!(graph.inputs().len(), 1);
    assert!(graph.tensor(graph.find_value("w").expect("w")).is_some());
    // From IR version 4 on, a listed initializer could be overridden: it is not listed.
    loaded.model.ir_version = 8;
    let written = to_bytes(&loaded.model).expect("it can be written");
    let graph = ModelProto::decode(&written[..])
        .expect("decodes")
        .graph
        .expect("a graph");
    let names: Vec<_> = graph.input.iter().map(|i| i.name()).collect();
    assert_eq!(names, ["x"]);
}

#[test]
fn a_built_model_of_an_old_version_lists_its_initializers() {
    let mut graph = Graph::new("g");
    let x = graph.add_input("x", None).expect("x");
    let w = graph
        .add_constant("w", Tensor::vector(vec![1f32]))
        .expect("w");
    let add = graph.add_op(NewOp::new("Add").input(x).input(w).output("y"));
    let y = graph.op(add.expect("add")).output(0).expect("y");
    graph.add_output(y).expect("an output");
    let bytes = to_bytes(&Model::new(graph, 8)).expect("it can be written");
    let message = ModelProto::decode(&bytes[..]).expect("decodes");
    assert_eq!(message.ir_version, Some(3));
    let inputs = message.graph.expect("a graph").input;
    assert_eq!(inputs.len(), 2);
    assert_eq!(inputs[1], info("w", Some(tensor_type(vec![dim(1)]))));
}

// ---- nested graphs and functions ----

fn branch(name: &str, nodes: Vec<NodeProto>, output: &str) -> AttributeProto {
    AttributeProto {
        g: Some(Box::new(GraphProto {
            name: some(name),
            node: nodes,
            output: vec![floats(output)],
            ..Default::default()
        })),
        ..attr(name, Kind::Graph)
    }
}

fn choice(then: Vec<NodeProto>, then_output: &str) -> NodeProto {
    NodeProto {
        name: some("if"),
        attribute: vec![
            branch("then_branch", then, then_output),
            branch(
                "else_branch",
                vec![node("Relu", &["late"], &["else_out"])],
                "else_out",
            ),
        ],
        ..node("If", &["cond"], &["y"])
    }
}

#[test]
fn captures_reach_through_every_level() {
    // "late" is made after its use in the file; "w" is captured through two levels.
    let inner = NodeProto {
        output: vec!["deep".into()],
        ..choice(vec![node("Neg", &["w"], &["t"])], "t")
    };
    let graph = GraphProto {
        input: vec![floats("x"), floats("cond")],
        node: vec![choice(vec![inner], "deep"), node("Neg", &["x"], &["late"])],
        ..add()
    };
    let bytes = Bytes::from(model(graph.clone()).encode_to_vec());
    let loaded = read_bytes(bytes, None, &ReadOptions::default()).expect("a valid model");
    let graph_read = &loaded.model.graph;
    graph_read.check_invariants().expect("a sound graph");
    let op = graph_read.ops_with_subgraphs().next().expect("the If");
    let mut captured: Vec<String> = graph_read
        .op(op)
        .captures()
        .map(|v| graph_read.value(v).name().to_string())
        .collect();
    captured.sort();
    assert_eq!(captured, ["cond", "late", "w"]);
    // Sorted, it comes back as it was.
    let mut sorted = graph;
    sorted.node.reverse();
    same(model(sorted));
}

#[test]
fn graphs_in_attributes_are_kept_whole() {
    let sub = |name: &str| GraphProto {
        name: some(name),
        doc_string: some("doc"),
        input: vec![floats("i")],
        initializer: vec![weights("own")],
        node: vec![node("Add", &["i", "own"], &["o"])],
        // A branch may hand out what it captures, and describe it.
        output: vec![floats("o"), floats("x")],
        value_info: vec![floats("x"), floats("o"), floats("unheard")],
        ..Default::default()
    };
    let attribute = AttributeProto {
        graphs: vec![sub("a"), sub("b"), GraphProto::default()],
        ..attr("bodies", Kind::Graphs)
    };
    same(model(GraphProto {
        node: vec![NodeProto {
            attribute: vec![attribute],
            ..node("Custom", &["x"], &["y"])
        }],
        ..add()
    }));
}

#[test]
fn errors_inside_graphs_say_where() {
    let bad = TensorProto {
        dims: vec![3],
        ..weights("k")
    };
    let constant = NodeProto {
        name: some("c"),
        attribute: vec![AttributeProto {
            t: Some(Box::new(bad)),
            ..attr("value", Kind::Tensor)
        }],
        ..node("Constant", &[], &["t"])
    };
    let message = model(GraphProto {
        node: vec![choice(vec![constant], "t")],
        ..add()
    });
    assert_eq!(
        refused(&message),
        "main_graph / If \"if\" / attribute \"then_branch\" / Constant \"c\" / attribute \"value\": \
         float tensor of shape [3] needs 12 bytes, found 8"
    );
}

#[test]
fn functions_are_kept() {
    let reference = AttributeProto {
        ref_attr_name: some("alpha"),
        ..attr("alpha", Kind::Float)
    };
    let function = |overload: Option<&str>| FunctionProto {
        name: some("Scale"),
        domain: some("com.example"),
        overload: overload.map(str::to_owned),
        doc_string: some("doc"),
        input: vec!["a".into(), "b".into()],
        output: vec!["c".into()],
        attribute: vec!["alpha".into()],
        attribute_proto: vec![AttributeProto {
            i: Some(2),
            ..attr("beta", Kind::Int)
        }],
        opset_import: vec![opset(Some(""), 17), opset(None, 1)],
        node: vec![
            NodeProto {
                attribute: vec![reference.clone()],
                ..node("LeakyRelu", &["a"], &["t"])
            },
            node("Add", &["t", "b"], &["c"]),
        ],
        value_info: vec![floats("a"), floats("t")],
        metadata_props: vec![pair("k", "v")],
    };
    same(ModelProto {
        functions: vec![
            function(None),
            function(Some("")),
            function(Some("other")),
            FunctionProto {
                domain: None,
                ..function(None)
            },
        ],
        ..model(add())
    });
}

#[test]
fn constants_in_functions_are_written_as_nodes() {
    let mut loaded = read_bytes(
        Bytes::from(
            ModelProto {
                functions: vec![FunctionProto {
                    name: some("F"),
                    domain: some("d"),
                    input: vec!["a".into()],
                    output: vec!["c".into()],
                    node: vec![node("Relu", &["a"], &["c"])],
                    ..Default::default()
                }],
                ..model(add())
            }
            .encode_to_vec(),
        ),
        None,
        &ReadOptions::default(),
    )
    .expect("a valid model");
    let body = &mut loaded.model.functions[0].body;
    body.add_constant("k", Tensor::scalar(1f32)).expect("k");
    let written = to_bytes(&loaded.model).expect("it can be written");
    let functions = ModelProto::decode(&written[..]).expect("decodes").functions;
    let constant = &functions[0].node[0];
    assert_eq!(constant.op_type(), "Constant");
    assert_eq!(constant.output, ["k"]);
    assert_eq!(constant.attribute[0].name(), "value");
}

#[test]
fn a_captured_value_is_not_hidden_by_an_inner_name() {
    let message = model(GraphProto {
        node: vec![
            choice(vec![node("Neg", &["x"], &["t"])], "t"),
            node("Relu", &["x"], &["late"]),
        ],
        ..add()
    });
    let bytes = Bytes::from(message.encode_to_vec());
    let mut model = read_bytes(bytes, None, &ReadOptions::default())
        .expect("valid")
        .model;
    // Afterwards the outer "x" is called "t", as a value inside is.
    let x = model.graph.find_value("x").expect("x");
    let op = model.graph.ops_with_subgraphs().next().expect("the If");
    model.graph.rename_value(x, "t").expect("renamed");
    model
        .graph
        .edit_subgraphs::<paring_ir::GraphError>(op, |i, g| {
            if i == 0 {
                let inner = g.find_value("t").expect("the captured value");
                g.rename_value(inner, "captured")?;
                let own = g.outputs()[0];
                g.rename_value(own, "t")?;
            }
            Ok(())
        })
        .expect("edited");
    let written = to_bytes(&model).expect("it can be written");
    let graph = ModelProto::decode(&written[..])
        .expect("decodes")
        .graph
        .expect("a graph");
    let node = graph
        .node
        .iter()
        .find(|n| n.op_type() == "If")
        .expect("the If");
    let then = node.attribute[0].g.as_ref().expect("a graph");
    assert_eq!(then.node[0].input, ["t"]);
    assert_ne!(then.node[0].output, ["t"]);
}

// ---- files and side files ----

fn with_weights(path: &Path) -> Model {
    let mut graph = Graph::new("g");
    let x = graph.add_input("x", None).expect("x");
    let big = Tensor::from_vec([1 << 19], (0..1 << 19).collect::<Vec<i32>>()).expect("big");
    let mid = Tensor::from_vec([300], vec![1.5f32; 300]).expect("mid");
    let twin = Tensor::from_vec([300], vec![1.5f32; 300]).expect("twin");
    let small = Tensor::from_vec([3], vec![1f32, 2.0, 3.0]).expect("small");
    let mut inputs = vec![Some(x)];
    for (name, t) in [("mid", mid), ("big", big), ("twin", twin), ("small", small)] {
        inputs.push(Some(graph.add_constant(name, t).expect("a constant")));
    }
    let op = graph.add_op(NewOp::new("Custom").domain("d").inputs(inputs).output("y"));
    let y = graph.op(op.expect("op")).output(0).expect("y");
    graph.add_output(y).expect("an output");
    let model = Model::new(graph, 17);
    write_file(&model, path, &WriteOptions::default()).expect("written");
    model
}

fn always() -> WriteOptions {
    WriteOptions {
        external_data: ExternalData::Always,
    }
}

#[test]
fn weights_go_to_a_side_file_and_come_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    let model = with_weights(&path);
    let report = write_file(&model, &path, &always()).expect("written");
    let side = report.side_file.expect("a side file");
    let name = side.file_name().and_then(|n| n.to_str()).expect("a name");
    assert!(name.starts_with("m-") && name.ends_with(".data") && name.len() == 2 + 16 + 5);
    let message = ModelProto::decode(&std::fs::read(&path).expect("the model")[..]);
    let tensors = message
        .expect("decodes")
        .graph
        .expect("a graph")
        .initializer;
    let offset = |i: usize| {
        tensors[i]
            .external_data
            .get(1)
            .map(|e| e.value().to_owned())
    };
    // The large one starts at a page; equal tensors share their place; the small one is inside.
    assert_eq!(offset(0).as_deref(), Some("0"));
    assert_eq!(offset(1).as_deref(), Some("4096"));
    assert_eq!(offset(2).as_deref(), Some("0"));
    assert_eq!(offset(3), None);
    let loaded = read_file(&path, &ReadOptions::default()).expect("read");
    assert_eq!(loaded.side_files, std::slice::from_ref(&side));
    for v in model.graph.initializers() {
        let name = model.graph.value(v).name();
        let other = loaded.model.graph.find_value(name).expect("the same name");
        assert_eq!(model.graph.tensor(v), loaded.model.graph.tensor(other));
    }
    // The same bytes again, from the file over itself: auto keeps the weights outside.
    let before = std::fs::read(&path).expect("the model");
    let again = write_file(&loaded.model, &path, &WriteOptions::default()).expect("written");
    assert_eq!(again.side_file, Some(side));
    assert!(again.left_behind.is_empty());
    assert_eq!(std::fs::read(&path).expect("the model"), before);
    assert_eq!(again.bytes, report.bytes);
}

#[test]
fn side_files_that_are_not_needed_any_more_are_named_and_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    let model = with_weights(&path);
    let old = write_file(&model, &path, &always())
        .expect("written")
        .side_file;
    let old = old.expect("a side file");
    let mut loaded = read_file(&path, &ReadOptions::default()).expect("read");
    let mid = loaded.model.graph.find_value("mid").expect("mid");
    let other = Tensor::from_vec([300], vec![2.5f32; 300]).expect("other");
    loaded
        .model
        .graph
        .set_tensor(mid, other, Vec::new())
        .expect("set");
    let report = write_file(&loaded.model, &path, &WriteOptions::default()).expect("written");
    assert_ne!(report.side_file.as_ref(), Some(&old));
    assert_eq!(report.left_behind, std::slice::from_ref(&old));
    assert!(old.is_file());
    // Written inside, both are left behind.
    let never = WriteOptions {
        external_data: ExternalData::Never,
    };
    let report = write_file(&loaded.model, &path, &never).expect("written");
    assert_eq!(report.side_file, None);
    assert_eq!(report.left_behind.len(), 2);
    let inside = read_file(&path, &ReadOptions::default()).expect("read");
    assert!(inside.side_files.is_empty());
}

#[test]
fn reading_and_mapping_give_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    let model = with_weights(&path);
    write_file(&model, &path, &always()).expect("written");
    let read = ReadOptions {
        mmap: false,
        ..ReadOptions::default()
    };
    let a = read_file(&path, &ReadOptions::default()).expect("mapped");
    let b = read_file(&path, &read).expect("read");
    assert_eq!(
        to_bytes(&a.model).expect("a"),
        to_bytes(&b.model).expect("b")
    );
}

#[test]
fn a_tensor_keeps_its_bits() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    let mut graph = Graph::new("g");
    let bits = [0x7fc0_1234u32, 0x8000_0000, 0xffff_ffff, 1];
    let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    let t = Tensor::new(DType::F32, [4], bytes).expect("four floats");
    let w = graph.add_constant("w", t.clone()).expect("w");
    graph.add_output(w).expect("an output");
    write_file(&Model::new(graph, 17), &path, &WriteOptions::default()).expect("written");
    let loaded = read_file(&path, &ReadOptions::default()).expect("read");
    let w = loaded.model.graph.find_value("w").expect("w");
    assert_eq!(loaded.model.graph.tensor(w), Some(&t));
}
