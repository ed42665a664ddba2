"""Errors and warnings before the first step of a training."""

import gc
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmseg.datasets import BaseSegDataset

from mmgroupnet.engine import training
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError
from tests.built_runs import check, classification, detection, edit, segmentation


@pytest.fixture(autouse=True, scope='module')
def quick_collection():
    """mmengine collects garbage for every data set. That takes half a second with the objects of all other tests, so
    these are frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def cfg(tmp_path):
    return detection(tmp_path)


@pytest.fixture
def warnings(monkeypatch):
    """The logged warnings."""
    said = []
    for module in ('annotation_files', 'classes', 'evaluators', 'masks', 'samples'):
        monkeypatch.setattr(
            f'mmgroupnet.engine.checks.{module}.print_log', lambda message, **options: said.append(message)
        )
    return said


def annotations(tmp_path, split='train'):
    return tmp_path / f'data/annotations/{split}.json'


def set_classes(cfg, *classes):
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.metainfo = dict(classes=classes)


def refuse(cfg, message, **options):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        check(cfg, **options)
    assert '\n' not in str(caught.value)


class Fetch:
    """A user-defined transform, which could download the pictures of a data set."""

    def __call__(self, sample):
        return sample


class OtherMasks(BaseSegDataset):
    """A data set whose masks number the classes from 1."""


class TestGoodRuns:
    def test_detection(self, cfg, warnings):
        check(cfg, stages=('train', 'val', 'test'))
        assert not warnings

    def test_no_random_number_is_drawn(self, cfg):
        states = torch.get_rng_state(), np.random.get_state()[1].tolist()
        check(cfg)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]

    def test_some_of_the_classes(self, cfg):
        set_classes(cfg, 'blue')
        check(cfg, num_classes=1)

    def test_wrapped_data_sets(self, cfg):
        inner = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = dict(
            type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner, inner])
        )
        check(cfg)
        refuse(cfg, 'num_classes=3, the data set of train_dataloader (CocoDataset) has 2 classes', num_classes=3)

    def test_pictures_with_categories_of_their_own(self, cfg, tmp_path):
        """They may have the same structure as the categories of the file."""
        edit(annotations(tmp_path), lambda file: [image.update(categories=['indoor']) for image in file['images']])
        check(cfg)
        tags = [dict(id=7, name='indoor')]
        edit(annotations(tmp_path), lambda file: [image.update(categories=tags) for image in file['images']])
        check(cfg)

    def test_segmentation(self, tmp_path, warnings):
        check(segmentation(tmp_path, [np.eye(16, dtype=np.uint8)] * 3), head='decode_head')
        assert not warnings

    def test_classification(self, tmp_path):
        check(classification(tmp_path), head='head')


class TestClasses:
    @pytest.mark.parametrize('num_classes', [1, 80])
    def test_a_head_of_another_size(self, cfg, num_classes):
        refuse(
            cfg,
            f'model.bbox_head has num_classes={num_classes}, the data set of train_dataloader (CocoDataset) has 2 '
            "classes: 'red', 'blue'. Set num_classes to 2",
            num_classes=num_classes,
        )

    def test_a_misspelt_class(self, cfg, tmp_path):
        set_classes(cfg, 'green', 'rde', 'blue')
        refuse(
            cfg,
            f"annotation file {annotations(tmp_path)} (train_dataloader) has no category 'green', 'rde' (did you mean "
            "'red'?): it has 'red', 'blue', the classes of the config are 'green', 'rde', 'blue'",
            num_classes=3,
        )

    def test_a_last_class_that_only_the_training_lacks(self, cfg, tmp_path, warnings):
        """One of several files may lack a class. If it is the last one, all labels stay the same."""
        edit(annotations(tmp_path), lambda file: file.update(categories=file['categories'][:1]))
        check(cfg)
        assert warnings == [
            f"annotation file {annotations(tmp_path)} (train_dataloader) has no category 'blue': no example of it is "
            'learnt from this file'
        ]

    def test_a_first_class_that_only_the_training_lacks(self, cfg, tmp_path):
        edit(annotations(tmp_path), lambda file: file.update(categories=file['categories'][1:]))
        refuse(cfg, f"{annotations(tmp_path)} (train_dataloader) has no category 'red'")

    def test_a_class_that_only_the_validation_lacks(self, cfg, tmp_path):
        edit(annotations(tmp_path, 'val'), lambda file: file.update(categories=file['categories'][:1]))
        refuse(cfg, f"{annotations(tmp_path, 'val')} (val_dataloader) has no category 'blue'")

    def test_classes_of_the_data_sets_own_type(self, cfg):
        """If the config names no classes, those of CocoDataset apply: the 80 classes of COCO."""
        for loader in ('train_dataloader', 'val_dataloader'):
            del cfg[loader].dataset['metainfo']
        refuse(cfg, "(train_dataloader) has no category 'person', 'bicycle'", num_classes=80)

    def test_another_order_than_in_the_file(self, cfg, tmp_path):
        """mmdet numbers the labels in the order of the file."""
        set_classes(cfg, 'blue', 'red')
        refuse(
            cfg,
            f"label 0 is 'red' in the annotation file {annotations(tmp_path)} (train_dataloader) and 'blue' in the "
            'classes of the config. Give the classes in the order of the file, each once: '
            "metainfo=dict(classes=('red', 'blue'))",
        )

    def test_another_order_in_the_file_of_validation(self, cfg, tmp_path):
        edit(annotations(tmp_path, 'val'), lambda file: file['categories'].reverse())
        refuse(cfg, f"label 0 is 'blue' in the annotation file {annotations(tmp_path, 'val')} (val_dataloader)")

    def test_a_category_that_is_there_twice(self, cfg, tmp_path):
        edit(annotations(tmp_path), lambda file: file['categories'].insert(0, dict(id=0, name='red')))
        refuse(cfg, "label 1 is 'red' in the annotation file")

    def test_lists_of_special_types_are_warned_of(self, cfg, warnings):
        """Such as the class of iSAID, in which the spelling of one name differs from the files."""
        from mmdet.datasets import CocoDataset
        from mmdet.registry import DATASETS

        class Special(CocoDataset):
            METAINFO = dict(classes=('red', 'bleu'))

        DATASETS.register_module(module=Special, force=True)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.type = 'Special'
            del loader.dataset['metainfo']
        check(cfg)
        assert "no category 'bleu' (did you mean 'blue'?)" in warnings[0]

    def test_a_misspelt_class_of_xml_files(self, cfg, tmp_path, warnings):
        for number in range(2):
            (tmp_path / f'{number}.jpg').touch()
            (tmp_path / f'{number}.xml').write_text(
                '<annotation><size><width>64</width><height>48</height></size><object><name>red</name><bndbox>'
                '<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
            )
        (tmp_path / 'names.txt').write_text('0\n1\n')
        cfg.train_dataloader.dataset = dict(
            type='XMLDataset',
            data_root=str(tmp_path),
            ann_file='names.txt',
            img_subdir='',
            ann_subdir='',
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=('rde', 'blue')),
            pipeline=cfg.train_dataloader.dataset.pipeline,
        )
        check(cfg, stages=('train',))
        assert warnings == [
            "the class 'rde' of train_dataloader (XMLDataset) is in none of the 2 XML files that were looked at (did "
            "you mean 'red'?). Objects whose names are not classes are left out"
        ]
        cfg.train_dataloader.dataset.metainfo.classes = ('red', 'blue')
        check(cfg, stages=('train',))
        assert len(warnings) == 1

    def test_training_and_validation_in_another_order(self, tmp_path):
        """For data sets in which the config defines the numbers of the classes."""
        cfg = segmentation(tmp_path, [np.eye(16, dtype=np.uint8)])
        cfg.val_dataloader.dataset.metainfo.classes = ('thing', 'ground')
        refuse(
            cfg,
            "'ground' is label 0 in train_dataloader and 1 in val_dataloader. There are 'ground', 'thing' in "
            "train_dataloader, 'thing', 'ground' in val_dataloader",
            head='decode_head',
        )

    def test_other_names_of_classes_in_validation(self, tmp_path, warnings):
        cfg = segmentation(tmp_path, [np.eye(16, dtype=np.uint8)])
        cfg.val_dataloader.dataset.metainfo.classes = ('ground', 'object')
        check(cfg, head='decode_head')
        assert "different names for a label: 'thing' and 'object'" in warnings[0]

    @pytest.mark.parametrize('num_classes', [2, 4])
    def test_folders_and_head(self, tmp_path, num_classes):
        cfg = classification(tmp_path, folders=('cat', 'dog', 'eel'))
        refuse(
            cfg,
            f'model.head has num_classes={num_classes}, the data set of train_dataloader (CustomDataset) has 3 '
            "classes: 'cat', 'dog', 'eel'",
            num_classes=num_classes,
            head='head',
        )

    def test_folders_in_another_order_than_the_classes(self, tmp_path):
        cfg = classification(tmp_path, metainfo=dict(classes=('dog', 'cat')))
        message = "the folder 'cat' of train_dataloader is label 0, in alphabetical order, and 'cat' is label 1"
        refuse(cfg, message, head='head')

    def test_names_of_folders_need_not_be_names_of_classes(self, tmp_path):
        check(classification(tmp_path, folders=('n01', 'n02'), metainfo=dict(classes=('tench', 'dog'))), head='head')

    def test_a_label_that_is_no_class(self, tmp_path):
        (tmp_path / 'train.txt').write_text('cat/0.png 0\ndog/0.png 2\n')
        refuse(
            classification(tmp_path, ann_file='train.txt'),
            'dog/0.png (train_dataloader, CustomDataset) has the label 2: there are 2 classes, 0 to 1 (num_classes of '
            'model.head)',
            head='head',
        )

    def test_more_folders_than_classes(self, tmp_path):
        cfg = classification(tmp_path, folders=('cat', 'dog', 'eel'), metainfo=dict(classes=('cat', 'dog')))
        refuse(cfg, 'the data set of train_dataloader: The number of subfolders (3)', head='head')

    def test_classes_that_a_known_set_has_not(self, tmp_path):
        cfg = segmentation(tmp_path, [np.eye(16, dtype=np.uint8)])
        cfg.train_dataloader.dataset.type = 'CityscapesDataset'
        refuse(cfg, "the data set of train_dataloader: new classes ('ground', 'thing') is not a subset of", head='head')

    def test_zero_is_a_class_in_one_loader_alone(self, tmp_path):
        cfg = segmentation(tmp_path, [np.eye(16, dtype=np.uint8)])
        cfg.train_dataloader.dataset.reduce_zero_label = True
        refuse(
            cfg,
            'val_dataloader has reduce_zero_label=False, train_dataloader True. Give both the same',
            head='decode_head',
        )

    def test_zero_may_mean_something_else_in_another_type(self, tmp_path):
        cfg = segmentation(tmp_path, [np.eye(16, dtype=np.uint8)])
        cfg.train_dataloader.dataset.type = OtherMasks
        cfg.train_dataloader.dataset.reduce_zero_label = True
        check(cfg, head='decode_head')

    def test_the_classes_of_a_checkpoint(self, cfg, tmp_path):
        cfg.load_from = str(tmp_path / 'trained.pth')
        meta = dict(dataset_meta=dict(classes=('blue', 'red')))
        torch.save(dict(state_dict={}, meta=meta), cfg.load_from)
        refuse(
            cfg,
            f"'blue' is label 0 in checkpoint {tmp_path}/trained.pth and 1 in test_dataloader. There are 'blue', 'red'",
            stages=('test',),
        )
        check(cfg)  # Fine-tuning may start from a checkpoint with other classes.
        meta['dataset_meta']['classes'] = ('n01', 'n02')
        torch.save(dict(state_dict={}, meta=meta), cfg.load_from)
        check(cfg, stages=('test',))


class TestAnnotationFiles:
    @pytest.mark.parametrize('field', ['area', 'bbox', 'category_id'])
    def test_a_field_that_training_reads(self, cfg, tmp_path, field):
        edit(annotations(tmp_path), lambda file: file['annotations'][3].pop(field))
        refuse(cfg, f'annotation file {annotations(tmp_path)}: 1 of its 8 annotations have no {field!r}')

    @pytest.mark.parametrize('field', ['height', 'file_name'])
    def test_a_field_of_pictures(self, cfg, tmp_path, field):
        edit(annotations(tmp_path), lambda file: [image.pop(field) for image in file['images']])
        refuse(cfg, f'annotation file {annotations(tmp_path)}: 8 of its 8 images have no {field!r}')

    def test_a_field_that_evaluation_reads(self, cfg, tmp_path):
        edit(annotations(tmp_path), lambda file: [one.pop('iscrowd') for one in file['annotations']])
        check(cfg)
        edit(annotations(tmp_path, 'val'), lambda file: [one.pop('iscrowd') for one in file['annotations']])
        refuse(
            cfg,
            f"annotation file {annotations(tmp_path, 'val')}: 4 of its 4 annotations have no 'iscrowd', which "
            'CocoMetric reads; add it: 0, and 1 for boxes around a crowd',
        )

    def test_masks_that_evaluation_reads(self, cfg, tmp_path):
        cfg.val_evaluator.metric = ['bbox', 'segm']
        refuse(cfg, "4 of its 4 annotations have no 'segmentation', which CocoMetric reads")

    @pytest.mark.parametrize('part', ['categories', 'images'])
    def test_a_list_that_is_not_there(self, cfg, tmp_path, part):
        edit(annotations(tmp_path), lambda file: file.pop(part))
        message = "has no list 'categories'" if part == 'categories' else '(CocoDataset) is empty'
        with pytest.raises(UserError, match=re.escape(message)):
            check(cfg)

    def test_no_json(self, cfg, tmp_path):
        content = annotations(tmp_path).read_text()
        annotations(tmp_path).write_text(content[:200])
        refuse(cfg, f'annotation file {annotations(tmp_path)} is no valid JSON: ')

    def test_the_annotation_that_pycocotools_never_finds(self, cfg, tmp_path):
        edit(annotations(tmp_path), lambda file: file['annotations'][0].update(id=0))
        check(cfg)
        edit(annotations(tmp_path, 'val'), lambda file: file['annotations'][0].update(id=0))
        refuse(
            cfg,
            f'annotation file {annotations(tmp_path, "val")} (val_evaluator) has an annotation with the id 0, which '
            'pycocotools counts as missed even where it is found: number annotations from 1',
        )

    @pytest.mark.parametrize(('part', 'split'), [('annotations', 'train'), ('annotations', 'val'), ('images', 'train')])
    def test_ids_that_are_there_twice(self, cfg, tmp_path, part, split):
        edit(annotations(tmp_path, split), lambda file: file[part][1].update(id=file[part][0]['id']))
        refuse(cfg, f'annotation file {annotations(tmp_path, split)}: two of its {part} have the id ')

    def test_categories_counted_from_0_and_from_1(self, cfg, tmp_path):
        edit(
            annotations(tmp_path),
            lambda file: [one.update(category_id=one['category_id'] - 1) for one in file['annotations']],
        )
        refuse(
            cfg,
            f'annotation file {annotations(tmp_path)}: there are annotations of the category ids 0, which its list of '
            "categories lacks, and none of 'blue'",
        )

    def test_a_list_of_some_of_the_categories(self, cfg, tmp_path, warnings):
        def change(file):
            file['categories'] += [dict(id=3, name='rare')]
            for number in (0, 1):
                file['annotations'][number]['category_id'] = 7

        edit(annotations(tmp_path), change)
        check(cfg)
        said = "there are annotations of the category ids 7, which its list of categories lacks, and none of 'rare'"
        assert [said in warning for warning in warnings] == [True]

    def test_no_picture_of_this_ending(self, tmp_path):
        cfg = segmentation(tmp_path, [np.eye(16, dtype=np.uint8)])
        cfg.train_dataloader.dataset.img_suffix = '.jpg'
        refuse(cfg, "Check the folders and the ending of the pictures, img_suffix='.jpg'", head='decode_head')

    def test_nothing_is_left(self, cfg, tmp_path):
        cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=8)
        edit(annotations(tmp_path), lambda file: file.update(annotations=[]))
        refuse(
            cfg,
            f'the data set of train_dataloader (CocoDataset) is empty: nothing is left of {annotations(tmp_path)} '
            "after filter_cfg={'filter_empty_gt': True, 'min_size': 8}. Check that it has samples with annotations of "
            "the classes 'red', 'blue'",
        )
        cfg.train_dataloader.dataset.serialize_data = False
        refuse(cfg, 'the data set of train_dataloader (CocoDataset) is empty')

    def test_other_errors_stay_what_they_are(self, cfg):
        cfg.train_dataloader.dataset.filter_cfg = 3
        with pytest.raises(AttributeError):
            check(cfg)

    def test_nothing_to_evaluate(self, cfg, tmp_path):
        edit(annotations(tmp_path, 'val'), lambda file: file.update(annotations=[]))
        refuse(cfg, f'annotation file {annotations(tmp_path, "val")} (val_evaluator) has no annotations')
        cfg.val_evaluator.update(format_only=True, outfile_prefix=str(tmp_path / 'out'))
        check(cfg)

    def test_pycocotools_is_left_as_it_was(self, cfg):
        from pycocotools.coco import COCO

        load = COCO.__init__
        check(cfg)
        assert COCO.__init__ is load


class TestEvaluators:
    def test_another_file(self, cfg, tmp_path):
        cfg.val_evaluator.ann_file = str(annotations(tmp_path))
        refuse(
            cfg,
            f'val_evaluator reads {annotations(tmp_path)}, the data set of val_dataloader '
            f'{annotations(tmp_path, "val")}: 4 of its 4 pictures are not in the file of the evaluator, the first has '
            'the id 8. Give both the same ann_file',
        )

    def test_another_file_with_the_same_ids(self, cfg, tmp_path):
        edit(annotations(tmp_path), lambda file: [image.update(id=image['id'] + 8) for image in file['images']])
        cfg.val_evaluator.ann_file = str(annotations(tmp_path))
        refuse(cfg, 'the picture with the id 8 is 0.png for the evaluator and ')

    def test_a_larger_file(self, cfg, tmp_path):
        larger = tmp_path / 'larger.json'
        content = json.loads(annotations(tmp_path, 'val').read_text())
        content['images'].append(dict(id=99, file_name='99.png', height=48, width=64))
        larger.write_text(json.dumps(content))
        cfg.val_evaluator.ann_file = str(larger)
        refuse(cfg, 'the evaluator has 5 pictures, the data set 4')

    def test_a_copy_and_a_link_of_the_file_pass(self, cfg, tmp_path, warnings):
        (tmp_path / 'copy.json').write_text(annotations(tmp_path, 'val').read_text())
        cfg.val_evaluator.ann_file = str(tmp_path / 'copy.json')
        check(cfg)
        (tmp_path / 'copy.json').unlink()
        (tmp_path / 'copy.json').symlink_to(annotations(tmp_path, 'val'))
        check(cfg)
        assert not warnings

    def test_a_part_of_the_file(self, cfg, warnings):
        cfg.val_dataloader.dataset.indices = 3
        check(cfg)
        assert 'the data set of val_dataloader has 3 of them: those in the others count as missed' in warnings[0]

    def test_a_metric_for_each_part(self, cfg, tmp_path):
        files = [str(annotations(tmp_path)), str(annotations(tmp_path, 'val'))]
        part = cfg.val_dataloader.dataset
        cfg.val_dataloader.dataset = dict(
            type='ConcatDataset', datasets=[dict(part, ann_file=file) for file in files], _scope_='mmdet'
        )
        metrics = [dict(cfg.val_evaluator, ann_file=file) for file in files]
        cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['a', 'b'])
        check(cfg)
        metrics.reverse()
        cfg.val_evaluator.metrics = metrics
        refuse(cfg, f'val_evaluator reads {files[1]}, the data set of val_dataloader {files[0]}')

    def test_a_file_in_another_order(self, cfg, tmp_path):
        other = tmp_path / 'other.json'
        content = json.loads(annotations(tmp_path, 'val').read_text())
        other.write_text(json.dumps(dict(content, categories=content['categories'][::-1])))
        cfg.val_evaluator.ann_file = str(other)
        refuse(cfg, f"label 0 is 'blue' in the annotation file {other} (val_evaluator) and 'red' in the classes")

    def test_no_file(self, cfg):
        cfg.val_evaluator.pop('ann_file')
        check(cfg)


class TestSamples:
    def test_names_that_repeat_the_folder(self, cfg, tmp_path):
        def with_folder(file):
            for image in file['images']:
                image['file_name'] = 'images/' + image['file_name']

        edit(annotations(tmp_path), with_folder)
        folder = tmp_path / 'data/images'
        refuse(
            cfg,
            f'{folder}/images/0.png (train_dataloader, CocoDataset) does not exist, nor do 7 others of the 8 '
            f'samples that were looked at. {folder}/0.png does: its folder is in data_root or data_prefix and in the '
            f'names of {annotations(tmp_path)} again',
        )

    def test_a_missing_picture(self, cfg, tmp_path):
        (tmp_path / 'data/images/11.png').unlink()
        refuse(cfg, f'{tmp_path}/data/images/11.png (val_dataloader, CocoDataset) does not exist. Paths are made of')
        cfg.val_dataloader.dataset.pipeline[0].ignore_empty = True
        check(cfg)

    def test_a_picture_that_a_transform_may_fetch(self, cfg, tmp_path):
        picture = tmp_path / 'data/images/11.png'
        picture.unlink()
        cfg.val_dataloader.dataset.pipeline.insert(0, dict(type=Fetch))
        check(cfg)

    def test_a_missing_mask(self, tmp_path):
        cfg = segmentation(tmp_path, [np.eye(16, dtype=np.uint8)] * 2)
        (tmp_path / 'mask/1.png').unlink()
        refuse(cfg, f'{tmp_path}/mask/1.png (train_dataloader, BaseSegDataset) does not exist', head='decode_head')

    def test_masks_of_colours(self, tmp_path):
        cfg = segmentation(tmp_path, [np.zeros((16, 24, 3), np.uint8)])
        refuse(
            cfg,
            f'mask {tmp_path}/mask/0.png has the shape (16, 24, 3): BaseSegDataset takes masks of one channel',
            head='decode_head',
        )

    def test_ids_that_are_no_classes(self, tmp_path):
        cfg = segmentation(tmp_path, [np.full((4, 4), 7, np.uint8)])
        refuse(cfg, f'mask {tmp_path}/mask/0.png holds the ids 7: BaseSegDataset has the 2 classes 0 to 1', head='head')

    def test_ids_of_16_bits(self, tmp_path):
        cfg = segmentation(tmp_path, [np.full((4, 4), 257, np.uint16)])
        message = 'holds ids up to 257, of which mmseg reads the lowest 8 bits (257 becomes 1)'
        refuse(cfg, f'mask {tmp_path}/mask/0.png {message}', head='head')
        cv2.imwrite(str(tmp_path / 'mask/0.png'), np.eye(4, dtype=np.uint16))
        check(cfg, head='head')

    def test_masks_of_0_and_255(self, tmp_path, warnings):
        check(segmentation(tmp_path, [np.eye(8, dtype=np.uint8) * 255] * 2), head='decode_head')
        assert warnings[0].startswith(
            "class 1 ('thing') never occurs in the 2 masks of train_dataloader that were looked at, while 255, which "
            'is ignored, does. If 255 stands for a class there, convert the masks to the ids 0 to 1'
        )

    def test_transforms_of_other_people_may_change_ids(self, tmp_path):
        from mmcv.transforms import BaseTransform
        from mmseg.registry import TRANSFORMS

        @TRANSFORMS.register_module(force=True)
        class From255(BaseTransform):
            def transform(self, results):
                results['gt_seg_map'] = results['gt_seg_map'] // 100
                return results

        cfg = segmentation(tmp_path, [np.eye(8, dtype=np.uint8) * 100])
        refuse(cfg, 'holds the ids 100', head='decode_head')
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.pipeline.insert(2, dict(type='From255'))
        check(cfg, head='decode_head')


def test_training_is_refused_before_its_first_step(cfg, tmp_path):
    cfg.model.bbox_head.num_classes = 80
    with pytest.raises(UserError, match='model.bbox_head has num_classes=80'):
        run_training(cfg)
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_no_rehearsal_trains_all_the_same(cfg, monkeypatch):
    monkeypatch.setattr(training, 'check_built_parts', lambda *args: pytest.fail('check_built_parts was called'))
    run_training(cfg, rehearse=False)
    assert (Path(cfg.work_dir) / 'epoch_1.pth').is_file()


def test_annotations_counted_from_1_and_categories_from_0(cfg, tmp_path):
    edit(
        annotations(tmp_path),
        lambda file: [one.update(id=one['id'] - 1) for one in file['categories']],
    )
    refuse(cfg, 'there are annotations of the category ids 2, which its list of categories lacks')


def test_ids_of_256(tmp_path):
    cfg = segmentation(tmp_path, [np.full((4, 4), 256, np.uint16)])
    refuse(cfg, 'holds ids up to 256, of which mmseg reads the lowest 8 bits (256 becomes 0)', head='head')


def test_a_negative_label(tmp_path):
    cfg = classification(tmp_path, ann_file='train.txt')
    (tmp_path / 'train.txt').write_text('cat/0.png 0\ndog/0.png -1\n')
    refuse(cfg, 'has the label -1: there are 2 classes, 0 to 1', head='head')


def test_few_masks_may_lack_some_of_many_classes(tmp_path, warnings):
    cfg = segmentation(tmp_path, [np.eye(8, dtype=np.uint8) * 255] * 2)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = dict(classes=tuple('abcde'))
    check(cfg, head='decode_head', num_classes=5)
    assert not warnings
