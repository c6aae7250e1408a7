package api

import (
	_ "k8s.io/kubernetes/pkg/apis/resource/install"
	"k8s.io/kubernetes/pkg/registry/resource/deviceclass"
	"k8s.io/kubernetes/pkg/registry/resource/devicetaintrule"
	"k8s.io/kubernetes/pkg/registry/resource/resourceclaim"
	"k8s.io/kubernetes/pkg/registry/resource/resourceclaimtemplate"
	"k8s.io/kubernetes/pkg/registry/resource/resourceslice"
)

func deviceResources() []*Resource {
	claims := resourceclaim.NewStrategy(contextNamespaces{}, contextAuthorizer{})
	return define("resource.k8s.io",
		definition{resource: "deviceclasses", kind: "DeviceClass", cluster: true, returns: true, strategy: deviceclass.Strategy},
		definition{resource: "devicetaintrules", kind: "DeviceTaintRule", cluster: true, storage: "v1beta2",
			strategy: devicetaintrule.Strategy, status: devicetaintrule.StatusStrategy},
		definition{resource: "resourceclaims", kind: "ResourceClaim", returns: true,
			strategy: claims, status: resourceclaim.NewStatusStrategy(claims)},
		definition{resource: "resourceclaimtemplates", kind: "ResourceClaimTemplate", returns: true,
			strategy: resourceclaimtemplate.NewStrategy(contextNamespaces{})},
		definition{resource: "resourceslices", kind: "ResourceSlice", cluster: true, returns: true,
			strategy: resourceslice.Strategy, fields: sliceFields, indexes: sliceIndexes()},
	)
}
