package nodeaccess

import (
	certificatesinformers "k8s.io/client-go/informers/certificates/v1beta1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	resourceinformers "k8s.io/client-go/informers/resource/v1"
	storageinformers "k8s.io/client-go/informers/storage/v1"
	"k8s.io/client-go/tools/cache"
)

// The node authorizer waits for its informers for ever, even when they are
// never started. Through these it stops waiting when the server closes.

type endingPods struct {
	coreinformers.PodInformer
	end <-chan struct{}
}

func (i endingPods) Informer() cache.SharedIndexInformer {
	return endingInformer{i.PodInformer.Informer(), i.end}
}

type endingVolumes struct {
	coreinformers.PersistentVolumeInformer
	end <-chan struct{}
}

func (i endingVolumes) Informer() cache.SharedIndexInformer {
	return endingInformer{i.PersistentVolumeInformer.Informer(), i.end}
}

type endingAttachments struct {
	storageinformers.VolumeAttachmentInformer
	end <-chan struct{}
}

func (i endingAttachments) Informer() cache.SharedIndexInformer {
	return endingInformer{i.VolumeAttachmentInformer.Informer(), i.end}
}

type endingSlices struct {
	resourceinformers.ResourceSliceInformer
	end <-chan struct{}
}

func (i endingSlices) Informer() cache.SharedIndexInformer {
	return endingInformer{i.ResourceSliceInformer.Informer(), i.end}
}

type endingRequests struct {
	certificatesinformers.PodCertificateRequestInformer
	end <-chan struct{}
}

func (i endingRequests) Informer() cache.SharedIndexInformer {
	return endingInformer{i.PodCertificateRequestInformer.Informer(), i.end}
}

type endingInformer struct {
	cache.SharedIndexInformer
	end <-chan struct{}
}

func (i endingInformer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	registration, err := i.SharedIndexInformer.AddEventHandler(handler)
	return endingRegistration{registration, i.end}, err
}

type endingRegistration struct {
	cache.ResourceEventHandlerRegistration
	end <-chan struct{}
}

func (r endingRegistration) HasSynced() bool {
	select {
	case <-r.end:
		return true
	default:
		return r.ResourceEventHandlerRegistration.HasSynced()
	}
}
