package api

import (
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	_ "k8s.io/kubernetes/pkg/apis/storagemigration/install"
	"k8s.io/kubernetes/pkg/registry/storage/csidriver"
	"k8s.io/kubernetes/pkg/registry/storage/csinode"
	"k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity"
	"k8s.io/kubernetes/pkg/registry/storage/storageclass"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattachment"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattributesclass"
	"k8s.io/kubernetes/pkg/registry/storagemigration/storagemigration"
)

func storageResources() []*Resource {
	out := define("storage.k8s.io",
		definition{resource: "csidrivers", kind: "CSIDriver", cluster: true, returns: true, strategy: csidriver.Strategy},
		definition{resource: "csinodes", kind: "CSINode", cluster: true, returns: true,
			strategy: csinode.Strategy, status: csinode.StatusStrategy},
		definition{resource: "csistoragecapacities", kind: "CSIStorageCapacity", strategy: csistoragecapacity.Strategy},
		definition{resource: "storageclasses", kind: "StorageClass", short: []string{"sc"}, cluster: true, returns: true, strategy: storageclass.Strategy},
		definition{resource: "volumeattachments", kind: "VolumeAttachment", cluster: true, returns: true,
			strategy: volumeattachment.Strategy, status: volumeattachment.StatusStrategy},
		definition{resource: "volumeattributesclasses", kind: "VolumeAttributesClass", short: []string{"vac"}, cluster: true, returns: true,
			strategy: volumeattributesclass.Strategy},
	)
	return append(out, define("storagemigration.k8s.io",
		definition{resource: "storageversionmigrations", kind: "StorageVersionMigration", cluster: true, storage: "v1beta1",
			strategy: storagemigration.Strategy, status: storagemigration.StatusStrategy},
	)...)
}
